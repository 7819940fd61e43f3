"""Every command teaches itself and can be kept quiet."""

import pytest

from coarlib.commands.__main__ import commands, load


@pytest.mark.parametrize("name", commands())
def test_help_teaches_and_quiet_is_offered(name, capsys):
    with pytest.raises(SystemExit) as end:
        load(name).main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert commands()[name].rstrip(".")[:40] in shown and "--quiet" in shown

import shlex

import pytest

from coarlib.commands import __main__
from coarlib.commands.start import new_setup
from coarlib.errors import ArgumentError
from coarlib.regression.attributions import Attributions


def test_the_template_runs_by_the_commands_it_prints(tmp_path, capsys):
    new_setup.main(["my_model", "--setup.dir", str(tmp_path)])
    printed = capsys.readouterr().out.replace("\\\n", " ")
    commands = [line.split(" coar ", 1)[1] for line in printed.splitlines() if " coar " in line]
    assert len(commands) == 5
    for command in commands:
        __main__.main(shlex.split(command))
    assert "total" in capsys.readouterr().out
    found = Attributions.load(tmp_path / "my_model" / "attributions")
    assert (found.num_features, found.num_targets) == (8, 20)
    assert found.held_out.mean > 0.5
    assert (tmp_path / "my_model" / "evaluation" / "evaluation.png").exists()


def test_nothing_is_overwritten_and_names_are_checked(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArgumentError, match="exists already"):
        new_setup.main(["taken", "--setup.dir", str(tmp_path)])
    for words in ([], ["a/b"], ["1x"]):
        with pytest.raises(ArgumentError, match=r"needs a name|NAME is required"):
            new_setup.main([*words, "--setup.dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

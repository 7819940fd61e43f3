"""Progress: seen on a terminal, a line now and then elsewhere, nothing where quiet is asked."""

import io

import pytest

from coarlib import progress
from coarlib.commands.arguments import Command
from coarlib.progress import Progress, set_quiet


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BEFORE_SHOWING", 0.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    set_quiet(False)  # whatever a command of another test asked for
    yield
    set_quiet(False)


def shown(monkeypatch, stream, **options):
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(4, "filling", **options) as bar:
        for _ in range(4):
            bar.advance()
    return stream.getvalue()


def test_a_bar_with_rate_and_time_left_on_a_terminal(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert "filling" in text and "4/4" in text and "row/s" in text and "\r" in text


def test_plain_lines_elsewhere(monkeypatch):
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 4 and "\r" not in "".join(lines)
    assert lines[1].startswith("filling: 2/4 rows") and lines[1].endswith("s left")


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_nothing(monkeypatch, stream):
    assert shown(monkeypatch, stream(), quiet=True) == ""
    Command("any", "x").parse(["--quiet"])
    assert shown(monkeypatch, stream()) == ""
    Command("next", "x").parse([])
    assert "filling" in shown(monkeypatch, stream())

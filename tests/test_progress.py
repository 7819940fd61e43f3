"""Progress: seen on a terminal, a line now and then elsewhere, nothing where quiet is asked."""

import io
from types import SimpleNamespace

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


class Kernel(SimpleNamespace):
    """A notebook's shell, and what it was asked to display."""

    def __init__(self):
        super().__init__(kernel=object(), shown=[])

    def display(self, content, raw, display_id):
        self.shown.append(content)
        return SimpleNamespace(update=lambda content, raw: self.shown.append(content))


def test_in_a_notebook_one_line_is_redrawn(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_PICTURES", 0.0)
    monkeypatch.setattr("IPython.get_ipython", lambda: kernel)
    monkeypatch.setattr("IPython.display.display", kernel.display)
    assert shown(monkeypatch, io.StringIO()) == ""
    assert len(kernel.shown) == 5 and "<progress" in kernel.shown[1]["text/html"]
    assert kernel.shown[-1]["text/plain"].startswith("filling: 4/4 rows in ")
    assert "<progress" not in kernel.shown[-1]["text/html"]
    kernel.shown.clear()
    assert shown(monkeypatch, io.StringIO(), quiet=True) == "" and kernel.shown == []
    monkeypatch.setattr(progress, "SECONDS_BEFORE_SHOWING", 60.0)
    assert shown(monkeypatch, io.StringIO()) == "" and kernel.shown == []

"""Progress on anything that takes longer than two seconds; silent where nobody looks."""

from __future__ import annotations

import sys
import time
from html import escape
from types import TracebackType
from typing import Any

from tqdm import tqdm

from coarlib.tracking import is_tracked
from coarlib.tracking import note as track

__all__ = ["Progress", "set_quiet"]

SECONDS_BEFORE_SHOWING = 2.0
SECONDS_BETWEEN_PLAIN_LINES = 60.0
SECONDS_BETWEEN_PICTURES = 0.25

_command = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Say whether the command that runs was asked to show no progress (``--quiet``)."""
    _command["quiet"] = quiet


class Progress:
    """A bar with rate and ETA on a terminal or in a notebook, a plain line a minute elsewhere.

    Parameters
    ----------
    total : int
        How many units there are.
    description, unit : str
        What is being done, and the name of one unit ("row", "B", "step").
    quiet : bool
        Print nothing at all; so it is everywhere while a command runs with ``--quiet``.

    Use as a context manager and call :meth:`advance`.
    """

    def __init__(
        self, total: int, description: str, unit: str = "row", quiet: bool = False
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self._done = 0
        self._numbers: dict[str, float] = {}
        self._started = self._last_line = time.monotonic()
        quiet = quiet or _command["quiet"]
        self._notebook = None if quiet else _Notebook.here()
        terminal = self._notebook is None and sys.stderr.isatty()
        self._plain = not (quiet or terminal or self._notebook)
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            unit_scale=unit == "B",
            delay=SECONDS_BEFORE_SHOWING,
            disable=quiet or not terminal,
            dynamic_ncols=True,
        )

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more units as done."""
        self._done += amount
        self._bar.update(amount)
        now = time.monotonic()
        if is_tracked():
            self._track(now)
        if self._plain and now - self._last_line >= SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = now
            print(self._line(now), file=sys.stderr, flush=True)
        elif self._notebook is not None and self._may_draw(now):
            self._last_line = now
            self._notebook.show(self._line(now), self._done / max(self.total, 1))

    def note(self, **numbers: float) -> None:
        """Add numbers (a loss) to what a tracker is told next."""
        self._numbers.update(numbers)

    def _track(self, now: float, last: bool = False) -> None:
        rate = self._done / max(now - self._started, 1e-9)
        unit = f"{self.unit}s"
        numbers = {f"{unit} done": self._done, f"{unit} a second": rate, **self._numbers}
        track(numbers, self._done, now=last)

    def _may_draw(self, now: float) -> bool:
        waited = now - self._last_line >= SECONDS_BETWEEN_PICTURES
        return waited and now - self._started >= SECONDS_BEFORE_SHOWING

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._started, 1e-9)
        left = (self.total - self._done) / rate if rate else float("inf")
        return (
            f"{self.description}: {self._done}/{self.total} {self.unit}s, "
            f"{rate:.3g} {self.unit}s/s, {left:.0f} s left"
        )

    def reach(self, done: int) -> None:
        """Count at least ``done`` units in all (others may be working on the same thing)."""
        if done > self._done:
            self.advance(done - self._done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if is_tracked():
            self._track(time.monotonic(), last=True)
        if self._notebook is not None:
            seconds = time.monotonic() - self._started
            ended = f"{self._done}/{self.total} {self.unit}s in {seconds:.1f} s"
            self._notebook.end(f"{self.description}: {ended}")


class _Notebook:
    """One line with a bar in a notebook's output, redrawn in place; needs no widgets."""

    def __init__(self, display: Any) -> None:
        self._display, self._handle = display, None

    @classmethod
    def here(cls) -> _Notebook | None:
        """Return one if this runs in a notebook's kernel."""
        shell = sys.modules.get("IPython")
        found = None if shell is None else shell.get_ipython()
        if found is None or not hasattr(found, "kernel"):
            return None
        from IPython.display import display

        return cls(display)

    def show(self, line: str, share: float) -> None:
        """Draw the line and the bar."""
        bar = f'<progress value="{min(share, 1.0):.3f}" style="width:12em"></progress>'
        self._draw(line, f"{bar} {escape(line)}")

    def end(self, line: str) -> None:
        """Leave a plain line, if a bar was ever shown."""
        if self._handle is not None:
            self._draw(line, escape(line))

    def _draw(self, line: str, html: str) -> None:
        content = {"text/plain": line, "text/html": f"<div>{html}</div>"}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

"""Progress on anything that takes longer than two seconds; silent where nobody looks."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress", "set_quiet"]

SECONDS_BEFORE_SHOWING = 2.0
SECONDS_BETWEEN_PLAIN_LINES = 60.0

_command = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Say whether the command that runs was asked to show no progress (``--quiet``)."""
    _command["quiet"] = quiet


class Progress:
    """A bar with rate and ETA on a terminal, a plain line a minute elsewhere.

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
        self._started = self._last_line = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet or _command["quiet"]
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            unit_scale=unit == "B",
            delay=SECONDS_BEFORE_SHOWING,
            disable=self._quiet or not self._terminal,
            dynamic_ncols=True,
        )

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more units as done."""
        self._done += amount
        self._bar.update(amount)
        now = time.monotonic()
        if self._quiet or self._terminal or now - self._last_line < SECONDS_BETWEEN_PLAIN_LINES:
            return
        self._last_line = now
        rate = self._done / (now - self._started)
        left = (self.total - self._done) / rate if rate else float("inf")
        print(
            f"{self.description}: {self._done}/{self.total} {self.unit}s, "
            f"{rate:.3g} {self.unit}s/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
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

"""Acting once before SIGTERM takes its course (a preemption, a time limit)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class BeforeTermination:
    """Context manager: SIGTERM first calls ``act``, then does what it would have done.

    Parameters
    ----------
    act : callable
        Called at once, or at the end of the ``with busy:`` block that the signal interrupts.

    Notes
    -----
    Outside the main thread, where Python cannot handle signals, nothing is installed.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._previous: Callable[..., object] | int | None = None
        self._installed = self._busy = self._requested = False

    def __enter__(self) -> BeforeTermination:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._uninstall()
        if self._requested:  # it came while something was put off, which then failed
            os.kill(os.getpid(), signal.SIGTERM)

    def _uninstall(self) -> None:
        if self._installed:
            # None: the handler was not installed from Python, and cannot be put back by it.
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(signal.SIGTERM, previous)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if not self._busy:
            self._go()

    def begin(self) -> None:
        """Put off what the signal does until :meth:`end`."""
        self._busy = True

    def end(self) -> None:
        """Do it now if the signal came."""
        self._busy = False
        if self._requested:
            self._go()

    def _go(self) -> None:
        self._requested = False
        try:
            self._act()
        finally:
            self._uninstall()
            os.kill(os.getpid(), signal.SIGTERM)

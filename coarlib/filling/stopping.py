"""Stopping a worker from outside: finish what is in hand, or drop it cleanly."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

# sysexits.h: 75 EX_TEMPFAIL. A batch script that sees either requeues the job.
EXIT_STOPPED = 75
EXIT_ABANDONED = 76

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class Abandoned(BaseException):
    """A second signal: drop the rows in hand at once (they are not committed)."""


class StopSignals:
    """Context manager: the first SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 sets :attr:`requested`.

    A second one raises :class:`Abandoned` where the program is, further ones do nothing. SLURM
    sends such a signal before a time limit or a preemption. Outside the main thread, where Python
    cannot handle signals, nothing is installed.
    """

    def __init__(self) -> None:
        self.requested = self.abandoned = False
        self._event = threading.Event()
        self._previous: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.abandoned:  # already on the way out
            return
        if self.requested:
            self.abandoned = True
            raise Abandoned(signal.Signals(number).name)
        self.requested = True
        self._event.set()
        print(
            f"{signal.Signals(number).name}: finishing the rows in hand, then stopping "
            "(a second signal drops them)",
            file=sys.stderr,
            flush=True,
        )

    def wait(self, seconds: float) -> None:
        """Sleep, but wake when a stop is requested."""
        self._event.wait(seconds)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

"""A sign of life on a shared file system: touching a file now and then."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Heartbeat:
    """Context manager that touches :attr:`file`, if any, every ``seconds`` from a thread."""

    def __init__(self, seconds: float, file: Path | None = None) -> None:
        self.file = file
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds):
            file = self.file
            if file is not None:
                with suppress(OSError):  # a lost store shows in the next write
                    os.utime(file)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

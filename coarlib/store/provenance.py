"""Where rows came from: each worker appends one JSON line a batch to ``workers/<name>.jsonl``."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coarlib
from coarlib.errors import StoreError
from coarlib.store.layout import WORKERS_DIR
from coarlib.store.writer import contiguous_runs


class WorkerLog:
    """One worker's file of batch records; a context manager.

    Parameters
    ----------
    store : Path
    task : dict
        What identifies the task: its name and settings, JSON-able.
    """

    def __init__(self, store: Path, task: dict[str, Any]) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}"
        self.path = store / WORKERS_DIR / f"{self.name}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}") from error
        self._append({"worker": self.name, "task": task, "versions": versions()})

    def batch(self, rows: NDArray[np.int64], started: float, seconds: float) -> None:
        """Record a committed batch: its row ranges, start (Unix seconds) and duration."""
        ranges = [[int(rows[r.start]), int(rows[r.stop - 1]) + 1] for r in contiguous_runs(rows)]
        self._append({"rows": ranges, "started": round(started, 3), "seconds": round(seconds, 4)})

    def _append(self, record: dict[str, Any]) -> None:
        data = (json.dumps(record, default=str) + "\n").encode()
        try:
            os.write(self._descriptor, data)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> WorkerLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def versions() -> dict[str, str]:
    """Return the versions of what computed a row (only of libraries already imported)."""
    found = {"python": platform.python_version(), "coarlib": coarlib.__version__}
    for name in ("numpy", "torch", "transformers", "torchvision"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "?"))
    return found

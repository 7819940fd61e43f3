"""Where rows came from: each worker appends one JSON line a batch to ``workers/<name>.jsonl``."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coarlib
from coarlib.errors import StoreError
from coarlib.store.heartbeat import Heartbeat
from coarlib.store.layout import WORKERS_DIR
from coarlib.store.writer import contiguous_runs

HEARTBEAT_SECONDS = 30.0


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
        self._heartbeat = Heartbeat(HEARTBEAT_SECONDS, self.path)

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
        self._heartbeat.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heartbeat.__exit__(kind, error, trace)
        with suppress(StoreError):  # on a full disk the rows' own error is the one to show
            self._append({"ended": round(time.time(), 3)})
        os.close(self._descriptor)


@dataclass(frozen=True)
class Batch:
    """One committed batch: who computed which rows, when, how long, and from what."""

    worker: dict[str, Any]
    ranges: tuple[tuple[int, int], ...]
    started: float
    seconds: float

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return sum(stop - start for start, stop in self.ranges)

    def holds(self, row: int) -> bool:
        """Whether ``row`` is one of them."""
        return any(start <= row < stop for start, stop in self.ranges)


def read_batches(store: Path) -> Iterator[Batch]:
    """Yield every recorded batch of a store; a line cut short by a crash is passed over."""
    for file in sorted((store / WORKERS_DIR).glob("*.jsonl")):
        worker: dict[str, Any] = {"worker": file.stem}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                if "worker" in record:
                    worker = record
                elif "rows" in record:
                    ranges = tuple((int(start), int(stop)) for start, stop in record["rows"])
                    yield Batch(worker, ranges, record["started"], record["seconds"])
            except (ValueError, KeyError, TypeError):
                continue


def has_ended(file: Path) -> bool:
    """Whether a worker's log says that it stopped (one that was killed says nothing)."""
    with open(file, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 64))
        return b'{"ended"' in stream.read()


def batch_of(store: Path, row: int) -> Batch:
    """Return the last batch that wrote ``row``; StoreError if none is recorded."""
    found = [batch for batch in read_batches(store) if batch.holds(row)]
    if not found:
        raise StoreError(f"no worker of {store} has recorded row {row}")
    return max(found, key=lambda batch: batch.started)


def versions() -> dict[str, str]:
    """Return the versions of what computed a row (only of libraries already imported)."""
    found = {"python": platform.python_version(), "coarlib": coarlib.__version__}
    for name in ("numpy", "torch", "transformers", "torchvision"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "?"))
    return found

"""Where rows came from: each worker appends one JSON line a batch to ``workers/<name>.jsonl``.

The line is written just before the batch is, so that no committed row lacks one, and holds the
rows' checksums: the line whose checksum is the row's own names its author, whatever the clocks of
the workers say and however often the row was computed.
"""

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

from coarlib.errors import StoreError
from coarlib.store.heartbeat import Heartbeat
from coarlib.store.layout import CHECKSUMS, WORKERS_DIR, ArrayFile, array_path
from coarlib.store.processes import process_identity
from coarlib.store.writer import contiguous_runs
from coarlib.version import __version__

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
        who = {"worker": self.name, "host": socket.gethostname()}
        process = process_identity(os.getpid())
        self._append({**who, "process": process, "task": task, "versions": versions()})
        self._heartbeat = Heartbeat(HEARTBEAT_SECONDS, self.path)

    def batch(
        self,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        started: float,
        seconds: float,
    ) -> None:
        """Record a batch that is about to be committed.

        Parameters
        ----------
        rows : int64 [B]
        digests : uint64 [B]
            Their checksums.
        started, seconds : float
            When its computation began (Unix seconds, this machine's clock) and how long it took.
        """
        ranges = [[int(rows[r.start]), int(rows[r.stop - 1]) + 1] for r in contiguous_runs(rows)]
        times = {"started": round(started, 3), "seconds": round(seconds, 4)}
        hexadecimal = [f"{digest:016x}" for digest in digests.tolist()]
        self._append({"rows": ranges, **times, "digests": hexadecimal})

    def _append(self, record: dict[str, Any]) -> None:
        data = (json.dumps(record, default=str) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
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
    """One batch: who computed which rows, when, how long, from what, and their checksums."""

    worker: dict[str, Any]
    ranges: tuple[tuple[int, int], ...]
    started: float
    seconds: float
    digests: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def ended(self) -> float:
        """When it was computed (Unix seconds, the worker's clock)."""
        return self.started + self.seconds

    def holds(self, row: int) -> bool:
        """Whether ``row`` is one of them."""
        return any(start <= row < stop for start, stop in self.ranges)

    def wrote(self, row: int, digest: int) -> bool:
        """Whether this batch computed ``row`` with just the values that have this checksum."""
        before = 0
        for start, stop in self.ranges:
            if start <= row < stop and len(self.digests) == self.num_rows:
                return self.digests[before + row - start] == f"{digest:016x}"
            before += stop - start
        return False


def read_batches(store: Path) -> Iterator[Batch]:
    """Yield every recorded batch of a store; a line cut short by a crash is passed over."""
    for file in sorted((store / WORKERS_DIR).glob("*.jsonl")):
        yield from parse_log(file.read_bytes(), file.stem)


def parse_log(data: bytes, worker_name: str) -> Iterator[Batch]:
    """Yield the batches of one worker's log, or of a part of it."""
    worker: dict[str, Any] = {"worker": worker_name}
    for line in data.splitlines():
        try:
            record = json.loads(line)
            if "worker" in record:
                worker = record
            elif "rows" in record:
                ranges = tuple((int(start), int(stop)) for start, stop in record["rows"])
                times = float(record["started"]), float(record["seconds"])
                yield Batch(worker, ranges, *times, tuple(record.get("digests", ())))
        except (ValueError, KeyError, TypeError):
            continue


def batch_of(store: Path, row: int) -> Batch:
    """Return the batch that wrote ``row`` as it is now.

    The last one whose checksum is the row's; where no checksum tells (the row is not completed,
    or something else wrote it since), the last one that computed the row.

    Raises
    ------
    StoreError
        If no worker has recorded the row.
    """
    found = [batch for batch in read_batches(store) if batch.holds(row)]
    if not found:
        raise StoreError(f"no worker of {store} has recorded row {row}")
    digest = digest_of(store, row)
    authors = [batch for batch in found if digest is not None and batch.wrote(row, digest)]
    return max(authors or found, key=lambda batch: batch.started)


def digest_of(store: Path, row: int) -> int | None:
    """Return the checksum that the store holds for ``row``; None if it holds none."""
    try:
        digest = ArrayFile.read(array_path(store, CHECKSUMS)).read_rows(row, row + 1)[0]
    except StoreError:
        return None
    return int(digest) or None


def versions() -> dict[str, str]:
    """Return the versions of what computed a row (only of libraries already imported)."""
    found = {"python": platform.python_version(), "coarlib": __version__}
    for name in ("numpy", "torch", "transformers", "torchvision"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "?"))
    return found

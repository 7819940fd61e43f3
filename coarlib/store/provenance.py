"""Where rows came from: each worker appends one JSON line a batch to ``workers/<name>.jsonl``.

The line is on disk before the batch is committed, so that no committed row lacks one, and holds the
rows' checksums: the line whose checksum is the row's own names its author, whatever the clocks of
the workers say and however often the row was computed. Each line ends in a digest of itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.files import fsync_directory
from coarlib.loading import parse_json
from coarlib.store.heartbeat import Heartbeat
from coarlib.store.layout import (
    CHECKSUMS,
    WORKERS_DIR,
    WRITE_FLAGS,
    ArrayFile,
    array_path,
    contiguous_runs,
)
from coarlib.store.processes import process_identity
from coarlib.version import __version__

HEARTBEAT_SECONDS = 30.0
# What a line ends in; a damaged digest still looks like the attempt at one.
LINE_DIGEST = re.compile(rb'"digest": "([0-9a-f]{16})"}$')


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
        flags = WRITE_FLAGS | os.O_APPEND | os.O_CREAT | os.O_EXCL
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(self.path, flags, 0o666)
            fsync_directory(self.path.parent)
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
        data = _line(json.loads(json.dumps(record, default=str)))
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

    def rows_and_digests(self) -> Iterator[tuple[int, int]]:
        """Yield each row with its checksum; nothing if the log does not hold them."""
        if len(self.digests) == self.num_rows:
            rows = (row for start, stop in self.ranges for row in range(start, stop))
            yield from zip(rows, (int(digest, 16) for digest in self.digests), strict=True)

    @property
    def ended(self) -> float:
        """When it was computed (Unix seconds, the worker's clock)."""
        return self.started + self.seconds

    def holds(self, row: int) -> bool:
        """Whether ``row`` is one of them."""
        return any(start <= row < stop for start, stop in self.ranges)

    def wrote(self, row: int, digest: int) -> bool:
        """Whether this batch computed ``row`` with just the values that have this checksum."""
        return (row, digest) in self.rows_and_digests()


def read_batches(store: Path) -> Iterator[Batch]:
    """Yield every recorded batch of a store; a line that is cut short or damaged is passed over."""
    for file in log_files(store):
        yield from parse_log(read_log(file), file.stem)


def log_files(store: Path) -> list[Path]:
    """Return the logs of all workers, by name."""
    return sorted(file for file in (store / WORKERS_DIR).glob("*.jsonl") if file.is_file())


def read_log(file: Path) -> bytes:
    """Read a worker's log; StoreError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error


def damaged_lines(store: Path) -> list[str]:
    """Name the lines of workers' logs that do not match their digest (``file:line``).

    The last line, cut short by a crash, is not among them, nor are logs of older versions.
    """
    found = []
    for file in log_files(store):
        lines = read_log(file).split(b"\n")[:-1]
        if any(map(LINE_DIGEST.search, lines)):
            found += [f"{file}:{i}" for i, line in enumerate(lines, 1) if not line_is_whole(line)]
    return found


def parse_log(data: bytes, worker_name: str) -> Iterator[Batch]:
    """Yield the batches of one worker's log, or of a part of it."""
    worker: dict[str, Any] = {"worker": worker_name}
    for line in data.splitlines():
        try:
            record = parse_line(line)
            if "worker" in record:
                worker = record
            elif "rows" in record:
                yield _batch(worker, record)
        except (StoreError, ValueError, KeyError, TypeError, OverflowError):
            continue


def _batch(worker: dict[str, Any], record: dict[str, Any]) -> Batch:
    """Check and return one record of a batch."""
    ranges = tuple((int(start), int(stop)) for start, stop in record["rows"])
    times = float(record["started"]), float(record["seconds"])
    digests = tuple(record.get("digests", ()))
    if not all(0 <= start < stop for start, stop in ranges) or not all(map(isfinite, times)):
        raise ValueError("no rows, or no times")
    if not all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests):
        raise ValueError("no digests")
    return Batch(worker, ranges, *times, digests)


def parse_line(line: bytes) -> dict[str, Any]:
    """Read one line of a log; StoreError if it is cut short, damaged or something else."""
    record = parse_json(line, "a line of a worker's log", StoreError)
    if not isinstance(record, dict) or (LINE_DIGEST.search(line) and not line_is_whole(line)):
        raise StoreError("a line of a worker's log is damaged")
    return record


def _line(record: dict[str, Any]) -> bytes:
    """Return a record as a line that ends in a digest of what stands before."""
    text = json.dumps(record).encode()[:-1] + b", "
    return text + b'"digest": "%016x"}\n' % xxhash.xxh3_64_intdigest(text)


def line_is_whole(line: bytes) -> bool:
    """Whether a line matches the digest at its end."""
    found = LINE_DIGEST.search(line)
    return found is not None and int(found[1], 16) == xxhash.xxh3_64_intdigest(
        line[: found.start()]
    )


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
        words = f"no worker of {store} has recorded row {row}"
        if damaged := damaged_lines(store):
            words += f"; damaged lines of the logs: {len(damaged)}, the first is {damaged[0]}"
        raise StoreError(words)
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

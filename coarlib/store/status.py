"""A store at a glance: what is done, by whom, how fast, and what is missing."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.store.claims import DEFAULT_TTL, block_rows_of, list_claims, owner_has_died
from coarlib.store.identity import all_identities
from coarlib.store.inside import passes_of_a_block, stores_inside
from coarlib.store.layout import CLAIMS_DIR, WORKERS_DIR, array_path, arrays_of, contiguous_runs
from coarlib.store.processes import has_died
from coarlib.store.provenance import Batch, log_files, parse_line, parse_log
from coarlib.store.reader import Store, StoreLike

RATE_WINDOW_SECONDS = 600.0
# A worker whose file or claim was touched this recently is called alive.
ALIVE_SECONDS = DEFAULT_TTL
# What is read of the workers' logs: first lines, and enough of their ends for the recent rate, so
# that a look at a store with a thousand workers still takes a fraction of a second.
HEAD_BYTES, LEAST_TAIL_BYTES, MOST_TAIL_BYTES, ALL_TAILS_BYTES = 2**16, 2**11, 2**17, 2**21


@dataclass(frozen=True)
class StoreStatus:
    """What :func:`status` found; rows unless said otherwise (of passes and trials: blocks).

    Attributes
    ----------
    complete, claimed, missing : int
        Committed; not committed in a block that a living worker claims; neither.
    torn : int
        Flagged as completed without a checksum (``verify`` reads the bytes of all others).
    missing_ranges : list of (start, stop)
        Of all rows that are not committed.
    rows_per_second, eta_seconds : float or None
        Over the last ten minutes, all workers together.
    workers : list of dict
        Those alive: name, host, seconds since the last sign of life.
    bytes_on_disk, bytes_when_full : int
        Of the arrays.
    has_checksums : bool
    num_tasks : int
        How many different tasks made rows (:mod:`coarlib.store.identity`); 0 if none said.
    passes_of_a_row : int or None
        Where rows are blocks: how many gradient passes or trials one holds.
    inside : dict of str to StoreStatus
        Of the stores within: added outputs, ``gradient_passes``, ``trials``.
    """

    path: str
    num_models: int
    complete: int
    claimed: int
    missing: int
    torn: int
    missing_ranges: list[tuple[int, int]]
    rows_per_second: float | None
    eta_seconds: float | None
    workers: list[dict[str, Any]]
    bytes_on_disk: int
    bytes_when_full: int
    has_checksums: bool
    num_tasks: int
    passes_of_a_row: int | None = None
    inside: dict[str, StoreStatus] = field(default_factory=dict)

    @property
    def everything(self) -> list[StoreStatus]:
        """This store and those within."""
        return [self, *self.inside.values()]

    def as_json(self) -> str:
        """Return everything as one JSON object."""
        return json.dumps(asdict(self))


def status(store: StoreLike) -> StoreStatus:
    """Look at ``store``, open or its path, without reading its rows (``verify`` does that)."""
    store = Store.open(store)
    done = store.completed()
    now = _file_servers_time(store.path)
    claimed = _claimed_rows(store, np.flatnonzero(~done), now) & ~done
    logs = _recent_logs(store.path, now)
    rate = _rate(logs)
    open_rows, workers = int((~done).sum()), _living_workers(logs)
    on_disk, when_full = _bytes_of_arrays(store)
    return StoreStatus(
        path=str(store.path),
        num_models=store.num_models,
        complete=int(done.sum()),
        claimed=int(claimed.sum()),
        missing=open_rows - int(claimed.sum()),
        torn=int(((store.flags() != 0) & ~done).sum()) if store.has_checksums else 0,
        missing_ranges=ranges(np.flatnonzero(~done).astype(np.int64)),
        rows_per_second=rate,
        eta_seconds=open_rows / rate if rate and open_rows and workers else None,
        workers=workers,
        bytes_on_disk=on_disk,
        bytes_when_full=when_full,
        has_checksums=store.has_checksums,
        num_tasks=len(all_identities(store.path)),
        passes_of_a_row=passes_of_a_block(store),
        inside={name: status(kept) for name, kept in stores_inside(store).items()},
    )


def ranges(rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ascending rows as [start, stop) ranges."""
    return [(int(rows[run.start]), int(rows[run.stop - 1]) + 1) for run in contiguous_runs(rows)]


def slurm_array(missing: list[tuple[int, int]], rows_per_task: int) -> str:
    """Return the array indices (task i fills rows i·R to (i+1)·R) that cover ``missing``."""
    blocks: set[int] = set()
    for start, stop in missing:
        blocks.update(range(start // rows_per_task, (stop - 1) // rows_per_task + 1))
    runs = ranges(np.array(sorted(blocks), np.int64))
    return ",".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in runs)


def _file_servers_time(path: Path) -> float:
    """Return the clock that stamps the store's files, if it may be asked (Unix seconds).

    Workers' and observers' clocks may be far apart; ages are taken on this one.
    """
    try:
        with tempfile.TemporaryFile(dir=path / WORKERS_DIR) as file:
            file.write(b"x")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # read-only, or full: this machine's clock will have to do
        return time.time()


def _claimed_rows(store: Store, open_rows: NDArray[np.int64], now: float) -> NDArray[np.bool_]:
    """Mark rows of pieces whose newest claim was touched recently and not let go."""
    claimed = np.zeros(store.num_models, np.bool_)
    size = block_rows_of(store)
    if size is None:
        return claimed
    for block in np.unique(open_rows // size).tolist():
        directory = store.path / CLAIMS_DIR / str(block)
        owners, released = list_claims(directory)
        edges = [*sorted(owners), (block + 1) * size]
        for start, stop in pairwise(edges):
            file = directory / owners[start].name
            age = None if owners[start] in released else _age(file, now)
            if age is not None and age < ALIVE_SECONDS and not owner_has_died(file):
                claimed[start:stop] = True
    return claimed


def _age(file: Path, now: float) -> float | None:
    """Seconds since ``file`` changed; None if it is gone."""
    try:
        return now - file.stat().st_mtime
    except OSError:
        return None


@dataclass(frozen=True)
class _Log:
    """The recent part of a worker's log; ``shift`` is what puts its clock right, if it is wrong."""

    name: str
    age: float
    alive: bool
    host: str
    batches: list[Batch]
    shift: float
    known_since: float  # of a long log only the end is read


def _recent_logs(path: Path, now: float) -> list[_Log]:
    """Read the logs that changed within the rate's window before the newest of them."""
    ages = {file: _age(file, now) for file in log_files(path)}
    known = {file: age for file, age in ages.items() if age is not None}
    newest = min(known.values(), default=0.0)
    recent = max(newest + RATE_WINDOW_SECONDS, ALIVE_SECONDS)
    files = sorted(file for file, age in known.items() if age < recent)
    tail = min(MOST_TAIL_BYTES, max(LEAST_TAIL_BYTES, ALL_TAILS_BYTES // max(1, len(files))))
    return [_read_log(file, known[file], now, tail) for file in files]


def _read_log(file: Path, age: float, now: float, tail_bytes: int) -> _Log:
    with open(file, "rb") as stream:
        head = stream.readline(HEAD_BYTES)
        size = os.fstat(stream.fileno()).st_size
        while True:
            skipped = max(0, size - tail_bytes)
            stream.seek(skipped)
            tail = stream.read(tail_bytes)
            batches = list(parse_log(tail, file.stem))
            if batches or not skipped or tail_bytes >= MOST_TAIL_BYTES:
                break
            tail_bytes *= 8  # its lines are long
    try:
        first = parse_line(head)
    except StoreError:  # killed while it wrote its first line
        first = {}
    stopped = b'{"ended"' in tail[-96:] or has_died(first.get("process"))
    # A line is stamped with the worker's clock, the file with the file server's.
    gap = now - age - max((batch.ended for batch in batches), default=now - age)
    host = str(first.get("host", file.stem.rsplit("-", 2)[0]))
    alive = age < ALIVE_SECONDS and not stopped
    shift = gap if abs(gap) > ALIVE_SECONDS else 0.0
    since = batches[0].started + shift if skipped and batches else float("-inf")
    return _Log(file.stem, age, alive, host, batches, shift, since)


def _rate(logs: list[_Log]) -> float | None:
    """Rows a second that all workers together committed of late."""
    spans = [
        (batch.started + log.shift, batch.ended + log.shift, batch.num_rows)
        for log in logs
        for batch in log.batches
    ]
    if not spans:
        return None
    end = max(span[1] for span in spans)
    since = max(end - RATE_WINDOW_SECONDS, *(log.known_since for log in logs))
    recent = [span for span in spans if span[1] > since]
    begin = min(span[0] for span in recent)
    return sum(span[2] for span in recent) / max(end - begin, 1e-3)


def _living_workers(logs: list[_Log]) -> list[dict[str, Any]]:
    return [
        {
            "worker": log.name,
            "host": log.host,
            "seconds_since_sign_of_life": round(max(0.0, log.age), 1),
        }
        for log in logs
        if log.alive
    ]


def _bytes_of_arrays(store: Store) -> tuple[int, int]:
    """Bytes that the arrays take now, sparse until they are filled, and when they are full."""
    now = full = 0
    for key in arrays_of(store.spec):
        file = array_path(store.path, key)
        if file.exists():
            size = file.stat()
            now += min(size.st_blocks * 512, size.st_size)  # a last block is not full
            full += size.st_size
    return now, full

"""A store at a glance: what is done, by whom, how fast, and what is missing."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.store.claims import CLAIM_NAME, DEFAULT_TTL, block_rows_of
from coarlib.store.layout import CLAIMS_DIR, WORKERS_DIR, array_path, arrays_of
from coarlib.store.provenance import has_ended, read_batches
from coarlib.store.reader import Store
from coarlib.store.writer import contiguous_runs

RATE_WINDOW_SECONDS = 600.0
# A worker whose file or claim was touched this recently is called alive.
ALIVE_SECONDS = DEFAULT_TTL


@dataclass(frozen=True)
class StoreStatus:
    """What :func:`status` found; rows unless said otherwise.

    Attributes
    ----------
    complete, claimed, missing : int
        Committed; not committed in a block that a living worker claims; neither.
    interrupted : int
        Flagged as completed without a checksum: a rewrite was cut (``verify --repair``).
    missing_ranges : list of (start, stop)
        Of all rows that are not committed.
    rows_per_second, eta_seconds : float or None
        Over the last ten minutes, all workers together.
    workers : list of dict
        Those alive: name, host, seconds since the last sign of life.
    bytes_on_disk, bytes_when_full : int
    """

    path: str
    num_models: int
    complete: int
    claimed: int
    missing: int
    interrupted: int
    missing_ranges: list[tuple[int, int]]
    rows_per_second: float | None
    eta_seconds: float | None
    workers: list[dict[str, Any]]
    bytes_on_disk: int
    bytes_when_full: int
    verified: bool

    def as_json(self) -> str:
        """Return everything as one JSON object."""
        return json.dumps(asdict(self))


def status(store: Store) -> StoreStatus:
    """Look at ``store`` without reading its rows (``verify`` does that)."""
    done = store.completed()
    claimed = _claimed_rows(store) & ~done
    rate = _rate(store.path)
    open_rows = int((~done).sum())
    return StoreStatus(
        path=str(store.path),
        num_models=store.num_models,
        complete=int(done.sum()),
        claimed=int(claimed.sum()),
        missing=open_rows - int(claimed.sum()),
        interrupted=int(((store.flags() != 0) & ~done).sum()) if store.verified else 0,
        missing_ranges=ranges(np.flatnonzero(~done)),
        rows_per_second=rate,
        eta_seconds=open_rows / rate if rate and open_rows else None,
        workers=_living_workers(store.path),
        bytes_on_disk=_bytes_on_disk(store),
        bytes_when_full=store.num_models * store.spec.row_bytes,
        verified=store.verified,
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


def _claimed_rows(store: Store) -> NDArray[np.bool_]:
    """Mark rows of blocks whose newest claim was touched recently and not released."""
    claimed = np.zeros(store.num_models, np.bool_)
    size = block_rows_of(store)
    if size is None:
        return claimed
    newest: dict[int, tuple[int, Path]] = {}
    released = set()
    for file in (store.path / CLAIMS_DIR).iterdir():
        match = CLAIM_NAME.fullmatch(file.name)
        if match is None:
            continue
        block, generation = int(match[1]), int(match[2])
        if match[3]:
            released.add((block, generation))
        elif block not in newest or newest[block][0] < generation:
            newest[block] = (generation, file)
    for block, (generation, file) in newest.items():
        if (block, generation) not in released and _age(file) < ALIVE_SECONDS:
            claimed[block * size : (block + 1) * size] = True
    return claimed


def _age(file: Path) -> float:
    """Seconds since ``file`` changed, by this machine's clock (for display only)."""
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return float("inf")


def _rate(path: Path) -> float | None:
    """Rows a second that all workers together committed of late."""
    batches = list(read_batches(path))
    if not batches:
        return None
    end = max(batch.started + batch.seconds for batch in batches)
    recent = [b for b in batches if b.started + b.seconds > end - RATE_WINDOW_SECONDS]
    begin = min(batch.started for batch in recent)
    return sum(batch.num_rows for batch in recent) / max(end - begin, 1e-3)


def _living_workers(path: Path) -> list[dict[str, Any]]:
    signs: dict[str, float] = {}
    for file in (path / WORKERS_DIR).glob("*.jsonl"):
        age = _age(file)
        if age < ALIVE_SECONDS and not has_ended(file):
            signs[file.stem] = age
    return [
        {
            "worker": name,
            "host": name.rsplit("-", 2)[0],
            "seconds_since_sign_of_life": round(age, 1),
        }
        for name, age in sorted(signs.items())
    ]


def _bytes_on_disk(store: Store) -> int:
    """Bytes that the arrays really take (they are sparse until filled)."""
    total = 0
    for key in arrays_of(store.spec):
        file = array_path(store.path, key)
        if file.exists():
            total += file.stat().st_blocks * 512
    return total

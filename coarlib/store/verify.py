"""Checking every committed row against its checksum, at the speed of the disk, and repairing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RowRangeError, StoreError
from coarlib.progress import Progress
from coarlib.store.checksum import row_checksums
from coarlib.store.layout import ArrayFile, array_path, drop_cached_pages
from coarlib.store.reader import Store
from coarlib.store.writer import RowWriter, contiguous_runs

# Blocks that fit a core's cache are hashed about twice as fast as large ones.
BLOCK_BYTES = 2**20
ROWS_PER_JOB = 512


@dataclass
class VerifyReport:
    """What :func:`verify` found.

    Attributes
    ----------
    checked : int
        Committed rows whose bytes were digested.
    torn : list of int
        Committed rows whose bytes do not match their checksum.
    unflagged : list of int
        Committed rows whose ``_completed`` flag is not 1 (upstream's readers miss them).
    unfounded : list of int
        Rows flagged as completed without a checksum (a rewrite was cut, or a foreign writer).
    bytes : int
        Bytes read.
    repaired : bool
        Whether torn and unfounded rows were withdrawn and flags restored.
    """

    checked: int = 0
    torn: list[int] = field(default_factory=list)
    unflagged: list[int] = field(default_factory=list)
    unfounded: list[int] = field(default_factory=list)
    bytes: int = 0
    repaired: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.torn or self.unflagged or self.unfounded)


def verify(
    store: Store,
    rows: tuple[int, int] | None = None,
    repair: bool = False,
    threads: int | None = None,
    quiet: bool = True,
) -> VerifyReport:
    """Check rows ``[start, stop)`` of ``store`` (all by default).

    Parameters
    ----------
    repair : bool
        Mark torn and unfounded rows as not completed, so that workers fill them again, and
        restore the flags of sound ones.
    threads : int, optional
        All cores by default; reading and hashing run outside Python's lock.

    Raises
    ------
    StoreError
        If the store carries no checksums (COAR's and datamodels' do not), or cannot be read.
    RowRangeError
        If the range lies outside the store.
    """
    if not store.verified:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it): unverified")
    start, stop = rows or (0, store.num_models)
    if not 0 <= start < stop <= store.num_models:
        raise RowRangeError(f"rows {start}:{stop} lie outside 0:{store.num_models}")
    checksums = store.checksums()
    committed = np.flatnonzero(checksums[start:stop]).astype(np.int64) + start
    report = VerifyReport(checked=len(committed), bytes=len(committed) * store.spec.row_bytes)
    report.torn = _torn_rows(store, committed, checksums, threads or os.cpu_count() or 1, quiet)
    flags, digests = store.flags()[start:stop], checksums[start:stop]
    report.unflagged = (np.flatnonzero((digests != 0) & (flags != 1)) + start).tolist()
    report.unfounded = (np.flatnonzero((digests == 0) & (flags != 0)) + start).tolist()
    if repair and not report.sound:
        _repair(store, report)
    return report


def _torn_rows(
    store: Store,
    rows: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    threads: int,
    quiet: bool,
) -> list[int]:
    files = {key: ArrayFile.read(array_path(store.path, key)) for key in store.spec.schema}
    for file in files.values():
        drop_cached_pages(file.path)
    jobs = [rows[first : first + ROWS_PER_JOB] for first in range(0, len(rows), ROWS_PER_JOB)]
    torn: list[int] = []
    with (
        Progress(len(rows), f"verifying {store.path.name}", quiet=quiet) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        for job, found in zip(
            jobs, pool.map(lambda job: _check(files, job, checksums), jobs), strict=True
        ):
            torn.extend(found)
            progress.advance(len(job))
    return torn


def _check(
    files: dict[str, ArrayFile], rows: NDArray[np.int64], checksums: NDArray[np.uint64]
) -> list[int]:
    """Return which of ``rows`` do not match; reads contiguous runs in cache-sized blocks."""
    descriptors = {key: os.open(file.path, os.O_RDONLY) for key, file in files.items()}
    row_bytes = sum(file.row_bytes for file in files.values())
    count = max(1, BLOCK_BYTES // max(1, row_bytes))
    torn: list[int] = []
    try:
        for run in contiguous_runs(rows):
            for first in range(run.start, run.stop, count):
                block = rows[first : min(first + count, run.stop)]
                found = row_checksums(block, _read_block(files, descriptors, block))
                torn.extend(block[found != checksums[block]].tolist())
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    return torn


def _read_block(
    files: dict[str, ArrayFile], descriptors: dict[str, int], rows: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    arrays = {}
    for key, file in files.items():
        buffer = np.empty((len(rows), file.row_bytes), np.uint8)
        read = os.preadv(
            descriptors[key], [buffer.data], file.offset + int(rows[0]) * file.row_bytes
        )
        if read != buffer.nbytes:
            raise StoreError(f"{file.path} ended inside row {rows[0] + read // file.row_bytes}")
        arrays[key] = buffer
    return arrays


def _repair(store: Store, report: VerifyReport) -> None:
    lost = np.array(sorted({*report.torn, *report.unfounded}), np.int64)
    kept = np.array(sorted(set(report.unflagged) - set(report.torn)), np.int64)
    with RowWriter(store) as writer:
        writer.withdraw(lost)
        writer.mark_completed(kept)
    report.repaired = True

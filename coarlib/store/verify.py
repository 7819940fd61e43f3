"""Checking every committed row against its checksum, at the speed of the disk, and repairing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RowRangeError, StoreError, TornRowError
from coarlib.progress import Progress
from coarlib.store.checksum import checksum_of_bytes
from coarlib.store.layout import ArrayFile
from coarlib.store.page_cache import drop_cached_pages
from coarlib.store.reader import Store
from coarlib.store.writer import RowWriter, contiguous_runs

# Blocks that fit a core's cache are hashed about twice as fast as large ones.
BLOCK_BYTES = 2**19
ROWS_PER_JOB = 512
MOST_BUFFERS = 512  # of one vectored read; systems take 1024
SECONDS_BEFORE_SECOND_LOOK = 0.2


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
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it): unverified")
    start, stop = rows or (0, store.num_models)
    if not 0 <= start < stop <= store.num_models:
        raise RowRangeError(f"rows {start}:{stop} lie outside 0:{store.num_models}")
    rows_wanted = np.arange(start, stop, dtype=np.int64)
    report = _look(store, rows_wanted, threads or os.cpu_count() or 1, quiet)
    if not report.sound:
        # A row that a living worker was just writing looks wrong for a moment; damage stays.
        time.sleep(SECONDS_BEFORE_SECOND_LOOK)
        suspects = np.array(sorted({*report.torn, *report.unflagged, *report.unfounded}), np.int64)
        again = _look(store, suspects, threads or os.cpu_count() or 1, quiet=True)
        report.torn, report.unflagged = again.torn, again.unflagged
        report.unfounded = again.unfounded
    if repair and not report.sound:
        _repair(store, report)
    return report


def find_torn(
    store: Store, rows: NDArray[np.int64], threads: int | None = None, quiet: bool = True
) -> list[int]:
    """Return which of some rows do not match their checksum; nothing is changed.

    Parameters
    ----------
    rows : int64 [K]
        Ascending row numbers, completed ones.
    threads, quiet
        See :func:`verify`.

    Raises
    ------
    StoreError
        If the store carries no checksums, or cannot be read.
    """
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it): unverified")
    threads = threads or os.cpu_count() or 1
    torn = _torn_rows(store, rows, store.checksums(), threads, quiet)
    if torn:  # a living worker may be at it, as in verify
        time.sleep(SECONDS_BEFORE_SECOND_LOOK)
        suspects = np.array(sorted(torn), np.int64)
        torn = _torn_rows(store, suspects, store.checksums(), threads, quiet=True)
    return torn


def refuse_torn(store: Store, rows: NDArray[np.int64], quiet: bool = True) -> None:
    """Raise TornRowError if any of the completed ``rows`` does not match its checksum.

    A store that carries no checksums is taken as it is.
    """
    torn = find_torn(store, rows, quiet=quiet) if store.has_checksums else []
    if torn:
        raise TornRowError(
            f"{len(torn)} completed rows of {store.path} do not match their checksums (the first "
            f"is {torn[0]}); run coar verify --repair there and fill them again"
        )


def _look(store: Store, rows: NDArray[np.int64], threads: int, quiet: bool) -> VerifyReport:
    """Compare the ascending ``rows`` with their checksums and flags, as they are now."""
    checksums, flags = store.checksums(), store.flags()
    digests, marks = checksums[rows], flags[rows]
    committed = rows[digests != 0]
    return VerifyReport(
        checked=len(committed),
        bytes=len(committed) * store.spec.row_bytes,
        torn=_torn_rows(store, committed, checksums, threads, quiet),
        unflagged=rows[(digests != 0) & (marks != 1)].tolist(),
        unfounded=rows[(digests == 0) & (marks != 0)].tolist(),
    )


def _torn_rows(
    store: Store,
    rows: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    threads: int,
    quiet: bool,
) -> list[int]:
    files = {key: store.array_file(key) for key in store.spec.schema}
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
    torn: list[int] = []
    with ExitStack() as stack:
        descriptors = {key: stack.enter_context(_opened(file)) for key, file in files.items()}
        block = _Block.of(files, descriptors, len(rows))
        for run in contiguous_runs(rows):
            for first in range(run.start, run.stop, len(block.rows)):
                some = rows[first : min(first + len(block.rows), run.stop)].tolist()
                block.read(some[0], len(some))
                torn.extend(
                    row
                    for row, data, digest in zip(
                        some, block.rows, checksums[some].tolist(), strict=False
                    )
                    if checksum_of_bytes(row, data) != digest
                )
    return torn


@dataclass(frozen=True)
class _Block:
    """Consecutive rows in memory, the arrays of each side by side, so that one call digests it.

    ``parts[key][i]`` is where the array ``key`` of the i-th row goes, ``rows[i]`` all of that row.
    """

    files: dict[str, ArrayFile]
    descriptors: dict[str, int]
    rows: list[memoryview]
    parts: dict[str, list[memoryview]]

    @classmethod
    def of(cls, files: dict[str, ArrayFile], descriptors: dict[str, int], most: int) -> _Block:
        """Make room for as many rows as fit, ``most`` at most."""
        row_bytes = sum(file.row_bytes for file in files.values())
        count = max(1, min(most, BLOCK_BYTES // max(1, row_bytes), MOST_BUFFERS))
        data = memoryview(bytearray(count * row_bytes))
        rows = [data[i * row_bytes : (i + 1) * row_bytes] for i in range(count)]
        parts, start = {}, 0
        for key in sorted(files):
            stop = start + files[key].row_bytes
            parts[key] = [row[start:stop] for row in rows]
            start = stop
        return cls(files, descriptors, rows, parts)

    def read(self, first: int, count: int) -> None:
        """Read ``count`` rows from row ``first`` on."""
        for key, file in self.files.items():
            descriptor, parts = self.descriptors[key], self.parts[key][:count]
            try:
                offset = file.offset + first * file.row_bytes
                if os.preadv(descriptor, parts, offset) != count * file.row_bytes:
                    for number, part in enumerate(parts):  # a short read, or the end of the file
                        file.read_into(descriptor, first + number, np.frombuffer(part, np.uint8))
            except OSError as error:
                raise StoreError(
                    f"cannot read rows {first} to {first + count - 1} of {file.path}: "
                    f"{error.strerror}"
                ) from error


@contextmanager
def _opened(file: ArrayFile) -> Iterator[int]:
    """Open a file for reading what is there now."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"cannot read {file.path}: {error.strerror}") from error
    try:
        drop_cached_pages(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _repair(store: Store, report: VerifyReport) -> None:
    lost = np.array(sorted({*report.torn, *report.unfounded}), np.int64)
    kept = np.array(sorted(set(report.unflagged) - set(report.torn)), np.int64)
    with RowWriter(store) as writer:
        writer.withdraw(lost)
        writer.mark_completed(kept)
    report.repaired = True

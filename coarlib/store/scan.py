"""Digesting the rows of a store as they lie on disk, at the speed of the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.progress import Progress
from coarlib.store.checksum import checksum_of_bytes
from coarlib.store.layout import ArrayFile, contiguous_runs
from coarlib.store.page_cache import drop_cached_pages
from coarlib.store.reader import Store

# Blocks that fit a core's cache are hashed about twice as fast as large ones.
BLOCK_BYTES = 2**19
ROWS_PER_JOB = 512
MOST_BUFFERS = 512  # of one vectored read; systems take 1024


def torn_rows(
    store: Store,
    rows: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    threads: int,
    quiet: bool,
) -> list[int]:
    """Return which of the ascending ``rows`` do not match their checksums uint64 [num_models]."""
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

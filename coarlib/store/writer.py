"""Durable row writes.

A row is durable before it is committed: the bytes of all its arrays, then its checksum (the commit
point), then its ``_completed`` flag (a derived copy for upstream's readers), each a positioned
write on an ``O_DSYNC`` descriptor. No step begins before the one before it is on disk; the writes
within a step go out side by side, and the flag, on which nothing waits, beside the next row. A
row that is written again loses its flag first, then its checksum, then its bytes: a flag never
stands on a row whose bytes are changing. The store is never mapped writable: on a network file
system two nodes that dirty one page overwrite each other's bytes, and only synchronous descriptors
keep the client from widening a write to its whole page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RowRangeError, StoreError
from coarlib.store.checksum import row_checksums
from coarlib.store.layout import (
    CHECKSUMS,
    COMPLETED,
    WRITE_FLAGS,
    ArrayFile,
    contiguous_runs,
)
from coarlib.store.reader import Store

# Writes that a step may have under way at once; a disk syncs several for the price of one.
MAX_THREADS = 4


class RowWriter:
    """Writes whole rows of a store; a context manager that holds one descriptor an array.

    Raises StoreError where a write fails (no space, I/O error, read-only or lost directory); the
    rows of that call are then not committed and everything committed before stays as it was.
    """

    def __init__(self, store: Store) -> None:
        if not store.has_checksums:
            raise StoreError(
                f"{store.path} was not made by coarlib (no spec.json, no checksums); "
                "it can be read but not filled"
            )
        self.store = store
        self._files: dict[str, ArrayFile] = {}
        self._descriptors: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="row-writer")
        self._flags: list[Future[None]] = []
        for key in (*store.spec.schema, CHECKSUMS, COMPLETED):
            try:
                self._files[key] = store.array_file(key)
                self._descriptors[key] = os.open(self._files[key].path, WRITE_FLAGS)
            except OSError as error:
                self.close()
                raise StoreError(
                    f"cannot write to {self._files[key].path}: {error.strerror}"
                ) from error
            except StoreError:
                self.close()
                raise

    def write(self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write rows and commit them.

        Parameters
        ----------
        rows : int64 [B]
            Row indices, strictly ascending.
        arrays : mapping of every schema key to array [B, *shape]
            In the stored dtypes.

        Raises
        ------
        StoreError
            If an array is missing or not of the stored dtype and shape, before anything is
            written; or if a write fails.
        RowRangeError
            If ``rows`` are not ascending rows of the store.
        """
        arrays = self._checked(rows, arrays)
        checksums = row_checksums(rows, arrays)
        self._withdraw_committed(rows)
        self._write_all(rows, arrays)
        self._write_all(rows, {CHECKSUMS: checksums})
        self.flush()
        self._flags = self._start(rows, {COMPLETED: np.ones(len(rows), np.bool_)})
        self._check_still_there()

    def commit_written(self, rows: NDArray[np.int64], checksums: NDArray[np.uint64]) -> None:
        """Commit rows whose bytes another program wrote, as they are.

        Parameters
        ----------
        rows : int64 [B]
            Ascending.
        checksums : uint64 [B]
            Of what lies there (:func:`coarlib.store.checksum.row_checksums`).
        """
        try:
            for key in self.store.spec.schema:
                os.fsync(self._descriptors[key])
        except OSError as error:
            raise StoreError(f"cannot sync {self.store.path}: {error.strerror}") from error
        self._write_all(rows, {CHECKSUMS: checksums})
        self.mark_completed(rows)

    def mark_completed(self, rows: NDArray[np.int64]) -> None:
        """Restore the flag of committed rows whose writer died between checksum and flag."""
        self.flush()
        self._write_all(rows, {COMPLETED: np.ones(len(rows), np.bool_)})

    def withdraw(self, rows: NDArray[np.int64]) -> None:
        """Mark rows as not completed, flag first, so that workers fill them again."""
        self.flush()
        self._write_all(rows, {COMPLETED: np.zeros(len(rows), np.bool_)})
        self._write_all(rows, {CHECKSUMS: np.zeros(len(rows), np.uint64)})

    def _checked(
        self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays in C order and schema order, once they are sure to fit their rows."""
        if len(rows) and (
            rows[0] < 0 or rows[-1] >= self.store.num_models or (np.diff(rows) <= 0).any()
        ):
            raise RowRangeError(
                f"rows to write must be ascending and within 0:{self.store.num_models}"
            )
        schema = self.store.spec.schema
        if set(arrays) != set(schema):
            raise StoreError(
                f"rows to write have {', '.join(sorted(arrays))}; {self.store.path} has "
                f"{', '.join(sorted(schema))}"
            )
        for key, spec in schema.items():
            if (arrays[key].dtype, arrays[key].shape) != (spec.dtype, (len(rows), *spec.shape)):
                raise StoreError(
                    f"{key} of {len(rows)} rows to write is {arrays[key].dtype.name} "
                    f"{list(arrays[key].shape)}, not {spec.dtype.name} "
                    f"{[len(rows), *spec.shape]}"
                )
        return {key: np.ascontiguousarray(arrays[key]) for key in schema}

    def _withdraw_committed(self, rows: NDArray[np.int64]) -> None:
        """Withdraw those of ``rows`` that are committed or flagged, before their bytes change."""
        if not len(rows):
            return
        first, last = int(rows[0]), int(rows[-1])
        marked = np.zeros(len(rows), np.bool_)
        for key in (CHECKSUMS, COMPLETED):
            marked |= self._files[key].read_rows(first, last + 1)[rows - first] != 0
        if marked.any():
            self.withdraw(rows[marked])

    def _check_still_there(self) -> None:
        """Say so if the store was removed or replaced under the open descriptors."""
        for key, descriptor in self._descriptors.items():
            path = self._files[key].path
            try:
                same = os.path.samestat(os.stat(path), os.fstat(descriptor))
            except OSError:
                same = False
            if not same:
                raise StoreError(
                    f"{path} was removed, renamed or replaced while it was being written; the "
                    "last rows went to the old file, nothing else was touched"
                )

    def flush(self) -> None:
        """Wait for the flags of the rows written last; StoreError if one could not be written."""
        flags, self._flags = self._flags, []
        _finish(flags)

    def _write_all(self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write stretches of arrays side by side and return when all are on disk."""
        if len(arrays) == 1 and len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            ((key, values),) = arrays.items()
            self._pwrite(key, int(rows[0]), values)
        else:
            _finish(self._start(rows, arrays))

    def _start(
        self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]
    ) -> list[Future[None]]:
        """Start one write for each array and run of consecutive rows."""
        return [
            self._pool.submit(self._pwrite, key, int(rows[run.start]), values[run])
            for run in contiguous_runs(rows)
            for key, values in arrays.items()
        ]

    def _pwrite(self, key: str, first_row: int, values: NDArray[Any]) -> None:
        file = self._files[key]
        data = values.reshape(-1).view(np.uint8).data
        offset = file.offset + first_row * file.row_bytes
        try:
            while data:
                written = os.pwrite(self._descriptors[key], data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise StoreError(
                f"cannot write rows {first_row} to {first_row + len(values) - 1} of {file.path}: "
                f"{error.strerror}; run the same command again once this is mended"
            ) from error

    def close(self) -> None:
        """Close all descriptors once nothing is being written; StoreError if a flag was not."""
        try:
            self._pool.shutdown()
            self.flush()
        finally:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(StoreError) if error else nullcontext():  # the first error is the one to show
            self.close()


def _finish(writes: Sequence[Future[None]]) -> None:
    """Wait for all writes, also when one fails; raise the first failure."""
    wait(writes)
    for write in writes:
        write.result()

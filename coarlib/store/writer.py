"""Durable row writes.

A row is durable before it is committed: the bytes of all its arrays, then its checksum (the commit
point), then its ``_completed`` flag (a derived copy for upstream's readers), each a positioned
write on an ``O_DSYNC`` descriptor. The store is never mapped writable: on a network file system
two nodes that dirty one page overwrite each other's bytes, and only synchronous descriptors keep
the client from widening a write to its whole page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.store.checksum import row_checksums
from coarlib.store.layout import CHECKSUMS, COMPLETED, ArrayFile, array_path
from coarlib.store.reader import Store

WRITE_FLAGS = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_DSYNC", os.O_SYNC)


class RowWriter:
    """Writes whole rows of a store; a context manager that holds one descriptor an array.

    Raises StoreError where a write fails (no space, I/O error, read-only or lost directory); the
    rows of that call are then not committed and everything committed before stays as it was.
    """

    def __init__(self, store: Store) -> None:
        if not store.verified:
            raise StoreError(
                f"{store.path} was not made by coarlib (no spec.json, no checksums); "
                "it can be read but not filled"
            )
        self.store = store
        self._keys = tuple(store.spec.schema)
        self._files: dict[str, ArrayFile] = {}
        self._descriptors: dict[str, int] = {}
        try:
            for key in (*self._keys, CHECKSUMS, COMPLETED):
                path = array_path(store.path, key)
                self._files[key] = ArrayFile.read(path)
                self._descriptors[key] = os.open(path, WRITE_FLAGS)
        except OSError as error:
            self.close()
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error

    def write(self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write rows and commit them.

        Parameters
        ----------
        rows : int64 [B]
            Ascending row indices.
        arrays : mapping of every schema key to array [B, *shape]
            In the stored dtypes.
        """
        checksums = row_checksums(rows, arrays)
        self._check_still_there()
        self._withdraw(rows)
        for run in contiguous_runs(rows):
            first = int(rows[run.start])
            for key in self._keys:
                self._pwrite(key, first, np.ascontiguousarray(arrays[key][run]))
            self._pwrite(CHECKSUMS, first, checksums[run])
            self._pwrite(COMPLETED, first, np.ones(run.stop - run.start, np.bool_))

    def _check_still_there(self) -> None:
        """Refuse to write into a store that was removed or replaced under the open descriptors."""
        for key, descriptor in self._descriptors.items():
            path = self._files[key].path
            try:
                same = os.path.samestat(os.stat(path), os.fstat(descriptor))
            except OSError:
                same = False
            if not same:
                raise StoreError(
                    f"{path} was removed or replaced while this worker was writing; its rows in "
                    "hand are lost, those in the store that is there now are untouched"
                )

    def mark_completed(self, rows: NDArray[np.int64]) -> None:
        """Restore the flag of committed rows whose writer died between checksum and flag."""
        for run in contiguous_runs(rows):
            self._pwrite(COMPLETED, int(rows[run.start]), np.ones(run.stop - run.start, np.bool_))

    def withdraw(self, rows: NDArray[np.int64]) -> None:
        """Mark rows as not completed, checksum first, so that workers fill them again."""
        for run in contiguous_runs(rows):
            first, count = int(rows[run.start]), run.stop - run.start
            self._pwrite(CHECKSUMS, first, np.zeros(count, np.uint64))
            self._pwrite(COMPLETED, first, np.zeros(count, np.bool_))

    def _withdraw(self, rows: NDArray[np.int64]) -> None:
        """Withdraw those of ``rows`` that are committed, before their bytes change."""
        written = self.store.checksums()[rows] != 0
        if written.any():
            self.withdraw(rows[written])

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
                f"{error.strerror}; they are not marked as completed, run the same command again "
                "once this is mended"
            ) from error

    def close(self) -> None:
        """Close all descriptors."""
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
        self.close()


def contiguous_runs(rows: NDArray[np.int64]) -> Iterator[slice]:
    """Split ascending indices into slices of consecutive rows."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield slice(start, stop)

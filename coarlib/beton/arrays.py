"""Getting arrays out of the pages: views where rows lie one behind the other, copies elsewhere."""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from coarlib.beton.fields import Field
from coarlib.beton.layout import Layout
from coarlib.errors import BetonError

THREADS = min(4, os.cpu_count() or 1)
BYTES_A_THREAD = 4 << 20
SMALL_ARRAY = 4096  # bytes; above, a loop over rows is faster than indexing by NumPy
PIECE_BYTES = 1 << 20  # what indexing gathers at a time, so that it stays in the cache


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="coarlib-copy")


# A forked child has none of its parent's threads; it makes its own when it needs them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


class Arrays:
    """The array fields of a validated file.

    Parameters
    ----------
    data : uint8 [file size]
        The memory map.
    layout : Layout
    offsets : int64 [rows, arrays]
        The file offset of each array, checked; in file order of the array fields.

    Attributes
    ----------
    run_starts : int64 [runs + 1]
        Rows run_starts[k] up to run_starts[k + 1] lie one behind the other.
    """

    def __init__(self, data: np.ndarray, layout: Layout, offsets: np.ndarray) -> None:
        self._data, self._layout, self._offsets = data, layout, offsets
        self._columns = {name: k for k, name in enumerate(layout.array_sizes)}
        breaks = np.empty(0, np.int64)
        if self._columns:
            breaks = np.flatnonzero((np.diff(offsets, axis=0) != layout.row_bytes).any(axis=1)) + 1
        self.run_starts = np.concatenate([[0], breaks, [layout.num_rows]])

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def view(self, name: str, first: int, last: int) -> np.ndarray:
        """View rows of one run without copying, [last - first, *shape]; it may be unaligned."""
        field = self._layout.fields[name]
        inner = np.empty(field.shape, field.dtype).strides
        return self._strided(name, first, (last - first, *field.shape), field.dtype, inner)

    def copy(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows (int64 [B]) of a field into ``out`` [B, *shape] of the field's dtype."""
        if not len(rows):
            return
        target = out.reshape(len(rows), -1).view(np.uint8)
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows) and bool(np.all(np.diff(rows) == 1)):
            self._copy_range(name, first, last, target)
            return
        self._gather(self._offsets[rows, self._columns[name]], target)

    def _gather(self, offsets: np.ndarray, target: np.ndarray) -> None:
        """Copy the bytes at each offset into uint8 [rows, nbytes].

        One thread: Python's lock is held between the rows of the loop.
        """
        data, size = self._data, target.shape[1]
        if size > SMALL_ARRAY:
            for place, offset in enumerate(offsets.tolist()):
                target[place] = data[offset : offset + size]
            return
        windows = np.lib.stride_tricks.sliding_window_view(data, size)
        step = PIECE_BYTES // size
        for first in range(0, len(offsets), step):
            target[first : first + step] = windows[offsets[first : first + step]]

    def _copy_range(self, name: str, first: int, last: int, target: np.ndarray) -> None:
        """Copy rows first..last-1 into uint8 [rows, nbytes], large parts side by side."""
        threads = min(THREADS, -(-target.nbytes // BYTES_A_THREAD), last - first)
        cuts = np.linspace(first, last, threads + 1).astype(int).tolist()
        parts = [(name, a, b, target[a - first : b - first]) for a, b in itertools.pairwise(cuts)]
        others = [_pool().submit(self._copy_part, *part) for part in parts[1:]]
        self._copy_part(*parts[0])
        for done in others:
            done.result()

    def _copy_part(self, name: str, first: int, last: int, target: np.ndarray) -> None:
        """Copy rows first..last-1 into uint8 [rows, nbytes], a run at a time."""
        size = self._layout.array_sizes[name]
        run = int(np.searchsorted(self.run_starts, first, side="right"))
        start = first
        while start < last:
            stop = min(int(self.run_starts[run]), last)
            rows = self._strided(name, start, (stop - start, size), np.dtype(np.uint8), (1,))
            target[start - first : stop - first] = rows
            start, run = stop, run + 1

    def _strided(
        self,
        name: str,
        first: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        inner: tuple[int, ...],
    ) -> np.ndarray:
        offset = int(self._offsets[first, self._columns[name]])
        return np.ndarray(shape, dtype, self._data, offset, (self._layout.row_bytes, *inner))


def empty_rows(field: Field, count: int) -> np.ndarray:
    """Return an uninitialised array for ``count`` rows of a field."""
    return np.empty((count, *field.shape), field.dtype)


def map_file(path: Path) -> np.ndarray:
    """Map a file read-only as uint8 [size]; BetonError if there is none or it is empty."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BetonError(f"{path} is not a file")
        if status.st_size == 0:
            raise BetonError(f"{path} is not a readable .beton: it is empty")
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BetonError(f"cannot open {path}: {reason}") from error

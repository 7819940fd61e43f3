"""Writing a ``.beton`` from (memory-mapped) arrays, in bounded memory, at the speed of the disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coarlib.beton.atomic import whole_or_nothing
from coarlib.beton.convert import check_castable, copy_rows
from coarlib.beton.fields import Field
from coarlib.beton.layout import TABLE_ENTRY, Layout, plan
from coarlib.errors import BetonError
from coarlib.progress import Progress

__all__ = ["write"]

PIECE_BYTES = 768 << 10  # gathered, converted and written while it is in the second-level cache
RECORD_BLOCK = 1 << 15  # rows of metadata and table made at a time
RELEASE_BYTES = 32 << 20  # source bytes read before their pages leave this process's memory


def write(
    path: str | os.PathLike[str],
    fields: Mapping[str, Field],
    source: Mapping[str, np.ndarray],
    *,
    rows: np.ndarray | None = None,
    page_size: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write a ``.beton`` file that ffcv's Loader and :func:`coarlib.beton.open` read.

    The file appears under its name only when it is whole and on disk: it is written beside it as
    ``<name>.partial``, synced and renamed. An interrupted write starts over. Memory is bounded by
    a piece of a few rows; memory-mapped sources are read once, in order.

    Parameters
    ----------
    path : path
        Replaced if it is a ``.beton`` already; any other existing file is refused.
    fields : mapping of name to NDArray, Int or Float
        In file order. Names have at most 16 ASCII characters.
    source : mapping of name to array [R, *shape]
        The values of each field; Int and Float take arrays [R]. Converted to the field's dtype
        where that keeps the kind of number and every value fits (see ``convert``).
    rows : int64 [N], optional
        Which rows of the source to write, in this order; all by default.
    page_size : int, optional
        A power of two from 2 MiB to 2 GiB. By default the smallest from 8 MiB that holds a row
        and wastes at most an eighth.
    quiet : bool
        Show no progress.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    BetonError
        If the format cannot hold this, source and fields do not fit, a value does not fit its
        dtype, the disk is full, or another process is writing the same file.
    """
    path = Path(path)
    source = {name: np.asanyarray(values) for name, values in source.items()}
    total = _check_source(fields, source)
    rows = _check_rows(rows, total)
    layout = plan(fields, len(rows), page_size)
    with whole_or_nothing(path, layout.packed_table_start + layout.table_bytes) as descriptor:
        file = _File(descriptor, layout, source, rows)
        file.write_head()
        with Progress(len(rows), f"writing {path.name}", quiet=quiet) as progress:
            file.write_pages(progress)
    return path


def _check_source(fields: Mapping[str, Field], source: Mapping[str, np.ndarray]) -> int:
    if set(fields) != set(source):
        raise BetonError(f"fields are {list(fields)}, but the source has {list(source)}")
    lengths = {name: len(array) for name, array in source.items()}
    if len(set(lengths.values())) > 1:
        raise BetonError(f"the sources have different numbers of rows: {lengths}")
    for name, field in fields.items():
        if source[name].shape[1:] != field.shape:
            raise BetonError(
                f"field '{name}' has shape {field.shape}, but a row of its source has "
                f"{source[name].shape[1:]}"
            )
        check_castable(name, source[name].dtype, field.dtype)
    return next(iter(lengths.values()), 0)


def _check_rows(rows: np.ndarray | None, total: int) -> np.ndarray:
    if rows is None:
        return np.arange(total)
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise BetonError(f"rows must be a list of integers, not {rows.dtype} {rows.shape}")
    if len(rows) and not 0 <= rows.min() <= rows.max() < total:
        raise BetonError(f"rows {rows.min()}..{rows.max()} go beyond the source's {total} rows")
    return rows.astype(np.int64, copy=False)


class _File:
    """A packed file being written: where things go (layout) and come from (source, rows)."""

    def __init__(
        self,
        descriptor: int,
        layout: Layout,
        source: Mapping[str, np.ndarray],
        rows: np.ndarray,
    ) -> None:
        self.descriptor, self.layout, self.rows = descriptor, layout, rows
        self.source = source
        self.arrays = {name: np.asarray(source[name]) for name in layout.array_sizes}
        self.piece = max(1, PIECE_BYTES // max(1, layout.row_bytes))  # rows
        self.read = 0  # source bytes since the last release

    def write_head(self) -> None:
        """Write header, metadata and allocation table."""
        layout, sizes = self.layout, self.layout.array_sizes
        self._write_at(0, layout.head())
        for first in range(0, len(self.rows), RECORD_BLOCK):
            numbers = np.arange(first, min(first + RECORD_BLOCK, len(self.rows)))
            records = np.empty(len(numbers), layout.record_dtype)
            table = np.empty((len(numbers), len(sizes)), TABLE_ENTRY)
            table["row"] = numbers[:, None]
            table["nbytes"] = list(sizes.values())
            if sizes:
                starts = np.cumsum([0, *sizes.values()])[:-1]
                table["offset"] = layout.packed_offset(numbers)[:, None] + starts
            for column, name in enumerate(sizes):
                records[name] = table["offset"][:, column]
            for name in layout.fields.keys() - sizes.keys():
                copy_rows(name, records[name], _take(self.source[name], self.rows[numbers]))
            self._write_at(layout.metadata_start + first * layout.record_bytes, records)
            self._write_at(layout.packed_table_start + first * table[:1].nbytes, table)

    def write_pages(self, progress: Progress) -> None:
        """Write the arrays, page after page; counts rows in ``progress``."""
        layout = self.layout
        if not self.arrays:
            return
        whole = layout.row_bytes <= PIECE_BYTES
        staging = np.empty((self.piece, layout.row_bytes if whole else 0), np.uint8)
        for first in range(0, len(self.rows), layout.rows_per_page):
            last = min(first + layout.rows_per_page, len(self.rows))
            page = int(layout.packed_offset(np.array(first)))
            for start in range(first, last, self.piece):
                rows = self.rows[start : min(start + self.piece, last)]
                offset = page + (start - first) * layout.row_bytes
                if whole:
                    self._write_rows(offset, rows, staging[: len(rows)])
                else:
                    self._write_long_row(offset, int(rows[0]))
                progress.advance(len(rows))
            self._start_writeback(page, layout.page_size)

    def _write_rows(self, offset: int, rows: np.ndarray, staging: np.ndarray) -> None:
        """Write consecutive rows of the file by way of ``staging`` uint8 [rows, row_bytes]."""
        begin = 0
        for name, array in self.arrays.items():
            end = begin + self.layout.array_sizes[name]
            _convert(name, self.layout.fields[name], _take(array, rows), staging[:, begin:end])
            begin = end
        self._write_at(offset, staging)
        self._count_read(len(rows) * sum(array[:1].nbytes for array in self.arrays.values()))

    def _write_long_row(self, offset: int, row: int) -> None:
        """Write one row that is longer than a piece, piece by piece."""
        for name, array in self.arrays.items():
            dtype, values = self.layout.fields[name].dtype, array[row].reshape(-1)
            step = max(1, PIECE_BYTES // dtype.itemsize)
            for first in range(0, values.size, step):
                part = values[first : first + step]
                piece = np.empty(part.size, dtype)
                copy_rows(name, piece, part)
                self._write_at(offset, piece)
                self._count_read(part.nbytes)
                offset += piece.nbytes

    def _write_at(self, offset: int, data: bytes | np.ndarray) -> None:
        left = np.frombuffer(data, np.uint8).data
        while left:
            written = os.pwrite(self.descriptor, left, offset)
            left, offset = left[written:], offset + written

    def _start_writeback(self, offset: int, nbytes: int) -> None:
        """Let the kernel begin writing these bytes, so that the final fsync finds little to do."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _count_read(self, nbytes: int) -> None:
        """Drop memory-mapped source pages from this process now and then."""
        self.read += nbytes
        if self.read >= RELEASE_BYTES:
            self.read = 0
            for array in self.source.values():
                _release(array)


def _convert(name: str, field: Field, values: np.ndarray, target: np.ndarray) -> None:
    """Store ``values`` [rows, *shape] as the field's dtype in bytes ``target`` [rows, nbytes]."""
    values = values.reshape(len(values), -1)
    whole = target.view(field.dtype)
    if whole.flags.aligned:
        copy_rows(name, whole, values)
    else:  # NumPy converts into unaligned memory an element at a time
        aligned = np.empty(values.shape, field.dtype)
        copy_rows(name, aligned, values)
        target[...] = aligned.view(np.uint8)


def _take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return ``array[rows]``, without a copy where the rows are consecutive."""
    first, count = int(rows[0]), len(rows)
    if rows[-1] - first == count - 1 and bool(np.all(np.diff(rows) == 1)):
        return array[first : first + count]
    return array[rows]


def _release(array: np.ndarray) -> None:
    """Drop the pages of a read-only memory map from this process (the page cache keeps them)."""
    base: object = array
    read_only = False
    while isinstance(base, np.ndarray):
        read_only |= isinstance(base, np.memmap) and base.mode == "r"
        base = base.base
    if read_only and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

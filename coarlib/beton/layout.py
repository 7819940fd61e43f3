"""Where everything lies in a ``.beton`` (FFCV version 2, little-endian).

::

    0   header 24 B | field descriptors 1041 B each
    M   metadata: one record a row, 8 bytes a field (a value, or the file offset of an array)
    D   pages (D and their size are multiples of page_size): the arrays, row after row; all the
        arrays of a row share a page
    A   allocation table: (row, offset, bytes), 24 B an array, to the end of the file

Without array fields there are no pages and A follows the metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coarlib.beton.fields import (
    DESCRIPTOR_BYTES,
    MAX_FIELDS,
    Field,
    array_fields,
    check_names,
    encode_field,
)
from coarlib.errors import BetonError

VERSION = 2
MIN_PAGE_SIZE = 1 << 21
DEFAULT_PAGE_SIZE = 1 << 23  # ffcv's default
MAX_PAGE_SIZE = 1 << 31  # the largest power of two that the header's u4 holds
ACCEPTABLE_WASTE = 1 / 8  # of a page, before a larger page is chosen

HEADER = struct.Struct("<HHIQQ")
TABLE_ENTRY = np.dtype([("row", "<u8"), ("offset", "<u8"), ("nbytes", "<u8")])
RECORD_ITEM_BYTES = 8


def is_page_size(size: int) -> bool:
    """Whether the format allows pages of ``size`` bytes."""
    return MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & (size - 1) == 0


def choose_page_size(row_bytes: int) -> int:
    """Return the smallest page from 8 MiB up that holds a row and wastes little of its tail.

    Raises
    ------
    BetonError
        If the arrays of one row exceed the format's largest page, 2 GiB.
    """
    if row_bytes > MAX_PAGE_SIZE:
        raise BetonError(
            f"one row takes {row_bytes} bytes, more than the largest page of a .beton "
            f"({MAX_PAGE_SIZE} bytes); store fewer outputs or a narrower dtype"
        )
    sizes = [DEFAULT_PAGE_SIZE << k for k in range(9) if DEFAULT_PAGE_SIZE << k >= row_bytes]
    waste = [size % row_bytes / size if row_bytes else 0.0 for size in sizes]
    for size, share in zip(sizes, waste, strict=True):
        if share <= ACCEPTABLE_WASTE:
            return size
    return sizes[waste.index(min(waste))]


@dataclass(frozen=True)
class Layout:
    """The geometry of a file: what follows from its fields, rows and page size.

    Parameters
    ----------
    fields : dict of name to Field, in file order
    num_rows : int
    page_size : int
    """

    fields: Mapping[str, Field]
    num_rows: int
    page_size: int

    @cached_property
    def metadata_start(self) -> int:
        """File offset of the first metadata record."""
        return HEADER.size + DESCRIPTOR_BYTES * len(self.fields)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of a metadata record."""
        return RECORD_ITEM_BYTES * len(self.fields)

    @cached_property
    def metadata_end(self) -> int:
        """File offset behind the last metadata record."""
        return self.metadata_start + self.record_bytes * self.num_rows

    @cached_property
    def data_start(self) -> int:
        """File offset of the first page (of the table, where there are no arrays)."""
        if not self.array_sizes:
            return self.metadata_end
        return -(-self.metadata_end // self.page_size) * self.page_size

    @cached_property
    def array_sizes(self) -> dict[str, int]:
        """Bytes of each array field."""
        return {name: field.nbytes for name, field in array_fields(self.fields).items()}

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of all arrays of one row."""
        return sum(self.array_sizes.values())

    @cached_property
    def rows_per_page(self) -> int:
        """How many rows a page holds when rows are packed."""
        return self.page_size // self.row_bytes if self.row_bytes else self.num_rows

    @cached_property
    def table_bytes(self) -> int:
        """Bytes of the allocation table."""
        return TABLE_ENTRY.itemsize * len(self.array_sizes) * self.num_rows

    @cached_property
    def record_dtype(self) -> np.dtype:
        """Dtype of a metadata record: array fields are unsigned file offsets."""
        return np.dtype(
            [
                (name, "<u8" if name in self.array_sizes else f.dtype)
                for name, f in self.fields.items()
            ]
        )

    # What follows holds for the files written here: rows packed in order.

    @cached_property
    def packed_table_start(self) -> int:
        """File offset of the allocation table of a packed file."""
        pages = -(-self.num_rows // self.rows_per_page) if self.array_sizes else 0
        return self.data_start + pages * self.page_size

    def packed_offset(self, rows: np.ndarray) -> np.ndarray:
        """Return the file offset of the first array of rows (int64 [B]) in a packed file."""
        page, slot = np.divmod(rows, self.rows_per_page)
        return self.data_start + page * self.page_size + slot * self.row_bytes

    def head(self) -> bytes:
        """Return header and field descriptors of a packed file."""
        header = HEADER.pack(
            VERSION, len(self.fields), self.page_size, self.num_rows, self.packed_table_start
        )
        return header + b"".join(encode_field(*item) for item in self.fields.items())


def plan(fields: Mapping[str, Field], num_rows: int, page_size: int | None) -> Layout:
    """Return the layout of a file to be written.

    Raises
    ------
    BetonError
        If the format cannot hold such a file.
    """
    check_names(fields)
    if not 1 <= len(fields) <= MAX_FIELDS:
        raise BetonError(f"a .beton has 1 to {MAX_FIELDS} fields, not {len(fields)}")
    if num_rows < 1:
        raise BetonError("a .beton needs at least one row")
    row_bytes = sum(field.nbytes for field in array_fields(fields).values())
    if page_size is None:
        page_size = choose_page_size(row_bytes)
    if not is_page_size(page_size):
        raise BetonError(
            f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, "
            f"not {page_size}"
        )
    if row_bytes > page_size:
        raise BetonError(
            f"the arrays of one row take {row_bytes} bytes and must share a page; "
            f"page_size {page_size} is too small"
        )
    return Layout(dict(fields), num_rows, page_size)

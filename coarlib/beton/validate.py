"""Checking a ``.beton`` before any of it is used: header, geometry, and every pointer.

Everything here raises BetonError with the reason alone; the reader adds the file's name.
"""

from __future__ import annotations

import numpy as np

from coarlib.beton.fields import DESCRIPTOR_BYTES, Field, decode_field
from coarlib.beton.layout import HEADER, TABLE_ENTRY, VERSION, Layout, is_page_size
from coarlib.errors import BetonError


def read_layout(data: np.ndarray) -> tuple[Layout, int]:
    """Read the header and field descriptors and check them against the file's size.

    Parameters
    ----------
    data : uint8 [file size]

    Returns
    -------
    Layout
    int
        The file offset of the allocation table.
    """
    if data.size < HEADER.size:
        raise BetonError(f"it has {data.size} bytes, less than a header")
    version, num_fields, page_size, num_rows, table = HEADER.unpack(data[: HEADER.size].tobytes())
    if version != VERSION:
        raise BetonError(f"its first bytes are not those of version {VERSION}")
    if not is_page_size(page_size):
        raise BetonError(f"its header has page size {page_size}")
    if num_fields < 1 or num_rows < 1:
        raise BetonError(f"its header has {num_fields} fields and {num_rows} rows")
    if HEADER.size + DESCRIPTOR_BYTES * num_fields > data.size:
        raise BetonError(f"its header has {num_fields} fields, more than fit the file")
    layout = Layout(_read_fields(data, num_fields), num_rows, page_size)
    if layout.row_bytes > page_size:
        raise BetonError(f"one row takes {layout.row_bytes} bytes, more than a page")
    wanted = table + layout.table_bytes
    if wanted != data.size or table < layout.data_start:
        reason = "truncated" if wanted > data.size else "damaged"
        raise BetonError(f"it is {reason}: {data.size} bytes, its header asks for {wanted}")
    if (table - layout.data_start) % page_size if layout.array_sizes else table > layout.data_start:
        raise BetonError("its header is damaged: the allocation table does not follow the pages")
    return layout, table


def _read_fields(data: np.ndarray, num_fields: int) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for number in range(num_fields):
        start = HEADER.size + DESCRIPTOR_BYTES * number
        name, field = decode_field(data[start : start + DESCRIPTOR_BYTES].tobytes())
        if name in fields:
            raise BetonError(f"two fields are called '{name}'")
        fields[name] = field
    return fields


def check_pointers(
    offsets: np.ndarray, table: np.ndarray, layout: Layout, table_start: int
) -> None:
    """Check every array's place against the pages and the allocation table.

    Parameters
    ----------
    offsets : uint64 [rows, arrays]
        The file offsets in the metadata, in file order of the array fields.
    table : TABLE_ENTRY [rows * arrays]
    """
    if not layout.array_sizes:
        return
    sizes = np.array(list(layout.array_sizes.values()), np.uint64)
    first, last = np.uint64(layout.data_start), np.uint64(table_start)
    # Without overflow: sizes are at most a page, offsets at most the table's.
    if (offsets < first).any() or (offsets > last - sizes).any():
        raise BetonError("it is damaged: an array lies outside the pages")
    page = np.uint64(layout.page_size)
    pages = (offsets - first) // page
    if ((offsets + sizes - np.uint64(1) - first) // page != pages).any() or (
        pages != pages[:, :1]
    ).any():
        raise BetonError("it is damaged: the arrays of a row do not share a page")
    used = np.count_nonzero(np.diff(np.sort(pages[:, 0]))) + 1
    if used != (table_start - layout.data_start) // layout.page_size:
        raise BetonError("it is damaged: it has pages that no row uses")
    _check_table(offsets, table, sizes)


def _check_table(offsets: np.ndarray, table: np.ndarray, sizes: np.ndarray) -> None:
    """Check that the table lists exactly the metadata's arrays, and that none overlap."""
    wanted = np.empty(offsets.shape, TABLE_ENTRY)
    wanted["row"] = np.arange(len(offsets), dtype=np.uint64)[:, None]
    wanted["offset"] = offsets
    wanted["nbytes"] = sizes
    wanted = _by_offset(wanted.reshape(-1))
    table = _by_offset(table)
    if any((wanted[key] != table[key]).any() for key in TABLE_ENTRY.names or ()):
        raise BetonError("it is damaged: its allocation table and metadata disagree")
    if (wanted["offset"][:-1] + wanted["nbytes"][:-1] > wanted["offset"][1:]).any():
        raise BetonError("it is damaged: arrays overlap")


def _by_offset(entries: np.ndarray) -> np.ndarray:
    """Sort table entries by offset; packed files are sorted already."""
    offsets = entries["offset"]
    if (offsets[1:] > offsets[:-1]).all():
        return entries
    return entries[np.argsort(offsets)]

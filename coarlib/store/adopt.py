"""Rows that other programs wrote, kept: COAR's and datamodels' own scripts on our arrays or theirs.

Such rows are flagged in ``_completed`` but carry no checksum. A row is adopted if it is whole: its
numbers are finite, it was written at all, and its mask is the one that the design draws, if there
is a design. Its checksum, written last, makes it a row like any other. A directory that coarlib did
not make becomes a store the same way: checksums of the rows it says are completed, and a spec of
the arrays that are there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import SpecError, StoreError
from coarlib.files import draft_of, fsync_directory
from coarlib.store.checksum import row_checksums
from coarlib.store.create import write_spec
from coarlib.store.layout import (
    CHECKSUMS,
    CHECKSUMS_SPEC,
    COMPLETED,
    SPEC_FILE,
    ArrayFile,
    array_path,
    create_array,
)
from coarlib.store.reader import Store
from coarlib.store.spec import parse_spec_content
from coarlib.store.writer import RowWriter


@dataclass
class Adoption:
    """Which flagged rows are whole, and why the others are not: {row: digest}, {row: reason}."""

    good: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


def adoptable(store: Store, rows: NDArray[np.int64]) -> Adoption:
    """Look at ``rows`` int64 [K] (ascending) as they lie on disk; nothing is changed."""
    found = Adoption()
    design, mask_key = store.design, store.mask_key
    for block, arrays in store.blocks(tuple(store.spec.schema), rows):
        reasons: dict[int, str] = {}
        for key, array in arrays.items():
            flat = array.reshape(len(block), -1)
            if array.dtype.kind == "f":
                finite = np.isfinite(flat).all(axis=1)
                _note(reasons, block[~finite], f"{key} holds NaN or inf")
                _note(reasons, block[~flat.any(axis=1)], f"{key} is all zero, as never written")
            elif array.dtype == np.bool_:
                bits = flat.view(np.uint8).max(axis=1, initial=0)
                _note(reasons, block[bits > 1], f"{key} holds bytes other than 0 and 1")
        if design is not None and mask_key in arrays:
            other = (arrays[mask_key] != store.draw_masks(design, block)).any(axis=1)
            _note(reasons, block[other], f"{mask_key} is not what the store's design draws")
        digests = row_checksums(block, arrays).tolist()
        found.good |= {
            row: digest
            for row, digest in zip(block.tolist(), digests, strict=True)
            if row not in reasons
        }
        found.refused |= reasons
    return found


def _note(reasons: dict[int, str], rows: NDArray[np.int64], reason: str) -> None:
    for row in rows.tolist():
        reasons.setdefault(row, reason)


def adopt(path: str | Path) -> Adoption:
    """Give the flagged rows of a directory their checksums; see the head of this module.

    Parameters
    ----------
    path : str or Path
        A store, or a directory of COAR's or datamodels' scripts.

    Returns
    -------
    Adoption
        The rows adopted now, and those refused, with the reason. Rows that had a checksum already
        are in neither: ``verify`` checks them.

    Raises
    ------
    StoreError
        If it is neither, or cannot be written.
    """
    path = Path(path)
    if not array_path(path, CHECKSUMS).exists():
        _make_it_a_store(path)
    store = Store.open(path)
    flagged = np.flatnonzero((store.flags() != 0) & ~store.completed()).astype(np.int64)
    found = adoptable(store, flagged)
    rows = np.array(sorted(found.good), np.int64)
    if len(rows):
        with RowWriter(store) as writer:
            writer.commit_written(rows, np.array([found.good[row] for row in rows], np.uint64))
    return found


def _make_it_a_store(path: Path) -> None:
    """Add a spec, if there is none, and empty checksums; a call that was cut is finished so."""
    if not (path / SPEC_FILE).is_file():
        spec = Store.open(path).spec
        try:  # by the rules of any spec
            write_spec(path, parse_spec_content(spec.as_json()))
        except SpecError as error:
            raise StoreError(f"{path} cannot be adopted: {error}") from error
        except OSError as error:
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error
    rows = ArrayFile.read(array_path(path, COMPLETED)).shape[0]
    draft = draft_of(array_path(path, CHECKSUMS))
    try:
        create_array(draft, CHECKSUMS_SPEC, rows)
        os.replace(draft, array_path(path, CHECKSUMS))
        fsync_directory(path)
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)

"""The regression data set of a store: mask, targets and source row of each finished run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np

from coarlib.beton.fields import Field, Int, NDArray
from coarlib.beton.writer import write
from coarlib.errors import BetonError
from coarlib.store import Store, StoreLike
from coarlib.store.added import store_of_output
from coarlib.store.verify import refuse_torn

__all__ = ["parse_slice", "write_store"]

COMPLETED = "_completed"
TARGET_DTYPES = ("float32", "float16", "float64")


def parse_slice(text: str, size: int) -> slice:
    """Read ``"a:b"`` (either end may be missing) or a single index ``"i"``.

    Negative numbers count from the end, as in Python.

    Raises
    ------
    BetonError
        If it is neither, selects nothing, or goes beyond ``size``.
    """
    match = re.fullmatch(r"\s*(-?\d+)?\s*(:)?\s*(-?\d+)?\s*", text)
    if not match or not (match[1] or match[2]) or (match[3] and not match[2]):
        raise BetonError(f"a slice of targets is 'a:b' or a single index, not {text!r}")
    first = int(match[1] or 0)
    last = int(match[3] or size) if match[2] else first + 1 or size
    first, last = (end + size if end < 0 else end for end in (first, last))
    if not 0 <= first < last <= size:
        raise BetonError(f"the slice {text} selects nothing in, or goes beyond, {size} targets")
    return slice(first, last)


def write_store(
    store: StoreLike,
    path: str | os.PathLike[str],
    x_name: str | None = None,
    y_name: str | None = None,
    *,
    y_slice: str | None = None,
    y_dtype: str = "float32",
    completed_name: str = COMPLETED,
    ignore_completed: bool = False,
    page_size: int | None = None,
    quiet: bool = False,
) -> int:
    """Write the completed rows of a store as a ``.beton`` with upstream's fields.

    The fields are ``mask`` NDArray(bool, (M,)), ``targets`` NDArray(y_dtype, (T,)) and ``idx``
    Int, the row of the store.

    Parameters
    ----------
    store : Store or path
    path : path
        The file to write (see :func:`coarlib.beton.write`).
    x_name, y_name : str, optional
        The store's arrays of masks (bool or 0/1, [num_models, M]) and outputs ([num_models, T]);
        further dimensions are flattened.
    y_slice : str, optional
        Targets to keep, ``"a:b"`` or a single index; all by default.
    y_dtype : str
        float32 (upstream's), float16 or float64. ffcv's Loader hangs on float16.
    completed_name : str
        The array that says which rows are finished.
    ignore_completed : bool
        Write all rows, finished or not, and say on stderr how many are not.
    page_size, quiet
        As for :func:`coarlib.beton.write`.

    Returns
    -------
    int
        The number of rows written.

    Raises
    ------
    BetonError
        If there is nothing to write, a mask holds more than 0 and 1, or a value overflows
        ``y_dtype``.
    StoreError
        If the store has no such array.
    TornRowError
        If the bytes of a completed row do not match its checksum (not with ignore_completed).
    """
    if y_dtype not in TARGET_DTYPES:
        raise BetonError(f"y_dtype must be {', '.join(TARGET_DTYPES)}, not {y_dtype}")
    store = store_of_output(Store.open(store), y_name)
    x_name, y_name = store.masks_name(x_name), store.outputs_name(y_name)
    masks, outputs = _matrix(store, x_name), _matrix(store, y_name)
    if outputs.dtype.kind not in "fiu":
        raise BetonError(f"{y_name} of {store.path} has dtype {outputs.dtype}; outputs are numbers")
    if y_slice is not None:
        outputs = outputs[:, parse_slice(y_slice, outputs.shape[1])]
    rows = _rows(store, completed_name, ignore_completed, quiet)
    if y_dtype == "float16":
        print("warning: ffcv's Loader hangs on float16 fields; coarlib reads them", file=sys.stderr)
    fields: dict[str, Field] = {
        "mask": NDArray(np.dtype(bool), masks.shape[1:]),
        "targets": NDArray(np.dtype(y_dtype), outputs.shape[1:]),
        "idx": Int(),
    }
    source = {"mask": masks, "targets": outputs, "idx": np.arange(store.num_models)}
    write(Path(path), fields, source, rows=rows, page_size=page_size, quiet=quiet)
    return len(rows)


def _matrix(store: Store, name: str) -> np.ndarray:
    """Return an array of the store as [num_models, size], still mapped."""
    array = store.array(name)
    return array.reshape(len(array), -1)


def _rows(store: Store, completed_name: str, ignore_completed: bool, quiet: bool) -> np.ndarray:
    if completed_name == COMPLETED:
        done = store.completed_rows()
    else:
        flags = store.array(completed_name)
        if flags.ndim != 1:
            raise BetonError(f"{completed_name} of {store.path} is not one flag a row")
        done = np.flatnonzero(flags)
    if store.has_checksums:  # unfinished rows may be asked for, damaged ones never
        refuse_torn(store, store.completed_rows(), quiet)
    if ignore_completed:
        unfinished = store.num_models - len(done)
        if unfinished:
            print(
                f"WARNING: {unfinished} of {store.num_models} rows are UNFINISHED and are "
                "included all the same, as zeros or whatever they hold (ignore_completed)",
                file=sys.stderr,
            )
        return np.arange(store.num_models)
    if not len(done):
        raise BetonError(f"no row of {store.path} is completed; there is nothing to write")
    return done

"""X'Y of boolean masks that are nearly all kept (or nearly all ablated), by adding rows.

With a twentieth of the components ablated, 1 - X has a twentieth of its entries set: adding up the
outputs of those rows takes a twentieth of a matrix product's operations, at a third of its rate.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.regression.threads import torch_threads

__all__ = ["add_sparse_products", "is_small", "pays"]

# Up to this share of set entries, and from so many targets on, rows are added faster than a matrix
# product is taken (measured with AVX-512; Apple's matrix units, which torch uses, are not tried).
_SPARSE = 0.18 if platform.machine().lower() in {"x86_64", "amd64"} else 0.0
_ENOUGH_TARGETS = 64
_SMALL = 2**31  # products: a tenth of a second
_ROWS, _TARGETS = 1024, 256  # a tile of outputs (float32: 1 MiB) stays in the level-2 cache


@njit(parallel=True)
def _list_rows(
    masks: NDArray[np.bool_], skipped: bool, starts: NDArray[np.int64], rows: NDArray[np.int16]
) -> None:  # pragma: no cover - compiled
    """List the rows of each chunk whose mask is not ``skipped``, feature by feature."""
    features = masks.shape[1]
    for chunk in prange(len(starts)):
        first, stop = chunk * _ROWS, min(len(masks), (chunk + 1) * _ROWS)
        at = np.zeros(features, np.int64)
        for r in range(first, stop):
            for j in range(features):
                at[j] += masks[r, j] != skipped
        starts[chunk, 0] = 0
        for j in range(features):
            starts[chunk, j + 1] = starts[chunk, j] + at[j]
            at[j] = starts[chunk, j]
        for r in range(first, stop):
            for j in range(features):
                if masks[r, j] != skipped:
                    rows[chunk, at[j]] = r - first
                    at[j] += 1


@njit(parallel=True, fastmath={"contract", "reassoc", "nsz"})
def _add_listed(
    starts: NDArray[np.int64], rows: NDArray[np.int16], values: NDArray[Any], out: NDArray[Any]
) -> None:  # pragma: no cover - compiled
    """Add the listed rows of ``values`` [B, T] to each feature's line of ``out`` [N, T]."""
    count, targets = values.shape
    for tile in prange((targets + _TARGETS - 1) // _TARGETS):
        first = tile * _TARGETS
        width = min(_TARGETS, targets - first)
        y = np.zeros((_ROWS, _TARGETS), values.dtype)
        total = np.zeros(_TARGETS, values.dtype)
        for chunk in range(len(starts)):
            here = min(_ROWS, count - chunk * _ROWS)
            for r in range(here):
                y[r, :width] = values[chunk * _ROWS + r, first : first + width]
            for j in range(len(out)):
                i, end = starts[chunk, j], starts[chunk, j + 1]
                total[:] = 0
                while i + 4 <= end:
                    a, b = y[rows[chunk, i]], y[rows[chunk, i + 1]]
                    c, d = y[rows[chunk, i + 2]], y[rows[chunk, i + 3]]
                    for k in range(_TARGETS):
                        total[k] += (a[k] + b[k]) + (c[k] + d[k])
                    i += 4
                while i < end:
                    a = y[rows[chunk, i]]
                    for k in range(_TARGETS):
                        total[k] += a[k]
                    i += 1
                for k in range(width):
                    out[j, first + k] += total[k]


def is_small(shape: tuple[int, int], num_targets: int) -> bool:
    """Whether X'Y of a block of masks [B, N] takes a matrix product no time, in float64 too."""
    return shape[0] * shape[1] * num_targets <= _SMALL


def pays(share: float, shape: tuple[int, int], num_targets: int) -> bool:
    """Whether :func:`add_sparse_products` beats a matrix product at this share of set entries.

    For a block of masks of a shape [B, N]; small ones are not worth compiling for.
    """
    rare = share <= _SPARSE and num_targets >= _ENOUGH_TARGETS
    return rare and not is_small(shape, num_targets)


def add_sparse_products(
    masks: NDArray[np.bool_], complement: bool, values: NDArray[Any], out: NDArray[np.float64]
) -> None:
    """Add X'Y of a block of rows to ``out``: sums of a chunk in Y's precision, chunks in float64.

    Parameters
    ----------
    masks : bool [B, N]
        X; fast where few entries are set (of 1 - X, with ``complement``).
    complement : bool
        Take 1 - X for X.
    values : float32 or float64 [B, T]
        Y.
    out : float64 [N, T]
    """
    chunks = -(-len(masks) // _ROWS)
    starts = np.empty((chunks, masks.shape[1] + 1), np.int64)
    set_entries = np.count_nonzero(masks, axis=1)
    each = masks.shape[1] - set_entries if complement else set_entries
    longest = max(int(each[c * _ROWS : (c + 1) * _ROWS].sum()) for c in range(chunks))
    rows = np.empty((chunks, longest), np.int16)
    with torch_threads():
        _list_rows(np.ascontiguousarray(masks), complement, starts, rows)
        _add_listed(starts, rows, np.ascontiguousarray(values), out)

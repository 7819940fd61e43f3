"""X'Y of boolean masks that are nearly all kept (or nearly all ablated), by adding rows.

With a twentieth of the components ablated, 1 - X has a twentieth of its entries set: adding up the
outputs of those rows takes a twentieth of a matrix product's operations, at a third of its rate.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import worth_compiling
from coarlib.regression.threads import torch_threads

__all__ = ["add_sparse_products", "is_small", "pays"]

# Up to this share of set entries, and from so many targets on, rows are added faster than a matrix
# product is taken (measured with AVX-512; Apple's matrix units, which torch uses, are not tried).
_SPARSE = 0.18 if platform.machine().lower() in {"x86_64", "amd64"} else 0.0
_ENOUGH_TARGETS = 64
_SMALL = 2**31  # products: a tenth of a second


def is_small(shape: tuple[int, int], num_targets: int) -> bool:
    """Whether X'Y of a block of masks [B, N] takes a matrix product no time, in float64 too."""
    return not worth_compiling(shape[0] * shape[1] * num_targets, _SMALL)


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
    from coarlib.regression.moments.kernels import ROWS, add_listed, list_rows

    chunks = -(-len(masks) // ROWS)
    starts = np.empty((chunks, masks.shape[1] + 1), np.int64)
    set_entries = np.count_nonzero(masks, axis=1)
    each = masks.shape[1] - set_entries if complement else set_entries
    longest = max(int(each[c * ROWS : (c + 1) * ROWS].sum()) for c in range(chunks))
    rows = np.empty((chunks, longest), np.int16)
    with torch_threads():
        list_rows(np.ascontiguousarray(masks), complement, starts, rows)
        add_listed(starts, rows, np.ascontiguousarray(values), out)

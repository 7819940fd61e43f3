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
    masks: NDArray[np.bool_],
    complement: bool,
    values: NDArray[Any],
    out: NDArray[np.float64],
    words: NDArray[np.uint64] | None = None,
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
    words : uint64 [N, ceil(B / 64)], optional
        The masks' columns in bits, where they are at hand.
    """
    from coarlib.regression.moments.kernels import add_listed, list_rows, pack

    with torch_threads():
        if words is None:
            words = pack(np.ascontiguousarray(masks).view(np.uint8))
        flips = np.full(words.shape[1], 2**64 - 1 if complement else 0, np.uint64)
        if len(masks) % 64:  # beyond the last row there are none
            flips[-1] &= np.uint64(2 ** (len(masks) % 64) - 1)
        starts, rows = list_rows(words, flips)
        add_listed(starts, rows, np.ascontiguousarray(values), out)

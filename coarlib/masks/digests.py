"""What a mask is, in eight bytes: the same in a store, a .beton, a merged store or an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from coarlib.errors import MaskError

__all__ = ["joined_digests", "mask_digests"]

BLOCK_ROWS = 4096


def mask_digests(masks: NDArray[Any]) -> NDArray[np.uint64]:
    """Digest each row's mask, whatever row number, order or file it has.

    Parameters
    ----------
    masks : bool (or 0/1) [n, …]
        One mask a row; further axes are flattened.

    Returns
    -------
    uint64 [n]
        XXH3 of the mask's bits, seeded with their number.

    Raises
    ------
    MaskError
        If ``masks`` has no axis of rows.
    """
    masks = np.asarray(masks)
    if masks.ndim < 2:
        raise MaskError(f"masks must be [rows, features], not {list(masks.shape)}")
    flat = masks.reshape(len(masks), -1)
    digests = np.empty(len(flat), np.uint64)
    for start in range(0, len(flat), BLOCK_ROWS):
        block = flat[start : start + BLOCK_ROWS]
        bits = np.packbits(block if block.dtype == bool else block != 0, axis=1)
        rows = np.ascontiguousarray(bits)
        found = [xxhash.xxh3_64_intdigest(row, flat.shape[1]) for row in rows]
        digests[start : start + len(block)] = found
    return digests


def joined_digests(
    some: NDArray[np.uint64], others: NDArray[np.uint64], sign: int
) -> NDArray[np.uint64]:
    """Put ascending digests together, or take ``others`` out, each as often as it is there."""
    if sign > 0:
        return np.sort(np.concatenate([some, others]))
    values, counts = np.unique(some, return_counts=True)
    gone, times = np.unique(others, return_counts=True)
    found = np.isin(gone, values)
    counts[np.searchsorted(values, gone[found])] -= times[found]
    return np.repeat(values, np.maximum(counts, 0))

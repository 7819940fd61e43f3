"""Exact average ranks of many columns at once.

Each value becomes an integer key of the same order (the sign-magnitude bits of a float, made
monotone; -0 becomes +0). Key and row number are packed into one machine word and each column is
sorted with one call of ``np.sort``, which is vectorised for integers, where an argsort is not.
Ties are found by comparing integers, so a rank never depends on rounding, blocking or threads.

Ranks are stored doubled and centred, as integers: ``2 * average_rank - (M + 1)`` with ranks from
1 to M. Their sum is zero and their products add up exactly in 64 bits, so that a rank correlation
is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.scoring.arrays import as_array, in_threads

__all__ = ["MOST_ROWS", "doubled_ranks"]

MOST_ROWS = 2**21  # M * (M - 1)**2, the largest sum of products, stays below 2**63
_TILE_WORDS = 2**19  # words a thread sorts at a time: fits in a level-2 cache
_U64 = np.uint64
_SIGN = {16: _U64(0x8000), 32: _U64(0x8000_0000), 64: _U64(0x8000_0000_0000_0000)}
_EXPONENT = {16: _U64(0x7C00), 32: _U64(0x7F80_0000), 64: _U64(0x7FF0_0000_0000_0000)}


def doubled_ranks(values: Any, axis: int = 0) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Average ranks along ``axis``, doubled and centred.

    Parameters
    ----------
    values : real [M, T] (``axis=0``) or [T, M] (``axis=1``)
        Ranked within each of the T columns (rows). Infinities are ordinary values.
    axis : int
        The axis that is ranked.

    Returns
    -------
    ranks : int32 [T, M]
        ``2 * rank - (M + 1)``, where ``rank`` is scipy's ``rankdata(..., method="average")``.
        Zero throughout for a column that holds a NaN, and for a constant column.
    has_nan : bool [T]

    Raises
    ------
    ScoringError
        For more than 2**21 values a column, or values that are not real numbers.
    """
    array = as_array(values)
    if array.ndim != 2:
        raise ScoringError(f"ranks need a 2-D array, not one of shape {list(array.shape)}")
    columns = _as_ordered_bits(array if axis == 0 else array.T)
    count, targets = columns.shape
    if count > MOST_ROWS:
        raise ScoringError(f"{count} values a target are too many to rank; at most {MOST_ROWS}")
    ranks = np.zeros((targets, count), dtype=np.int32)
    has_nan = np.zeros(targets, dtype=bool)
    if count == 0:
        return ranks, has_nan
    is_float = array.dtype.kind == "f"

    def rank_tile(tile: slice) -> None:
        _rank_tile(columns[:, tile], is_float, ranks[tile], has_nan[tile])

    in_threads(rank_tile, targets, min(512, max(16, _TILE_WORDS // count)))
    return ranks, has_nan


def _as_ordered_bits(array: NDArray[Any]) -> NDArray[Any]:
    """View real values as unsigned bits of 16, 32 or 64; integers keep two's complement."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind in "bui" and size < 4:
        array = array.astype(np.int32)
    elif kind == "u" and size == 4:
        array = array.astype(np.int64)
    elif kind == "u":
        array = array ^ _SIGN[64]  # now ordered as int64
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


def _rank_tile(
    bits: NDArray[Any], is_float: bool, ranks: NDArray[np.int32], has_nan: NDArray[np.bool_]
) -> None:
    count, targets = bits.shape
    width = 8 * bits.itemsize
    index_bits = max(1, int(count - 1).bit_length())
    narrow = width + index_bits <= 32
    keys = np.empty((targets, count), dtype=np.uint32 if narrow else np.uint64)
    _keys(bits, keys, (_SIGN[width], _EXPONENT[width]), is_float, has_nan)
    if width < 64:
        packed, shift = keys, 0
        _pack(packed, _U64(index_bits))
    else:
        packed = np.empty_like(keys)
        shift = int(_pack_shifted(keys, packed, _U64(index_bits)))
    packed.sort(axis=1)
    if shift:
        _ranks_with_collisions(packed, keys, _U64(index_bits), has_nan, ranks)
    else:
        _ranks(packed, _U64(index_bits), has_nan, ranks)


@njit(nogil=True, cache=True)
def _keys(
    bits: NDArray[Any],
    keys: NDArray[Any],
    layout: tuple[np.uint64, np.uint64],
    is_float: bool,
    has_nan: NDArray[np.bool_],
) -> None:  # pragma: no cover - compiled
    """Transpose ``bits`` [M, T] into monotone integer keys [T, M]; flag NaN columns."""
    sign, exponent = layout
    every = sign | (sign - np.uint64(1))
    magnitude = sign - np.uint64(1)
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            value = np.uint64(bits[row, column])
            if is_float:
                if (value & magnitude) > exponent:
                    has_nan[column] = True
                if value == sign:
                    value = np.uint64(0)
                value ^= every if value & sign else sign
            else:
                value ^= sign
            keys[column, row] = value


@njit(nogil=True, cache=True)
def _pack(keys: NDArray[Any], index_bits: np.uint64) -> None:  # pragma: no cover - compiled
    for target in range(keys.shape[0]):
        for row in range(keys.shape[1]):
            keys[target, row] = (np.uint64(keys[target, row]) << index_bits) | np.uint64(row)


@njit(nogil=True, cache=True)
def _pack_shifted(
    keys: NDArray[np.uint64], packed: NDArray[np.uint64], index_bits: np.uint64
) -> np.uint64:  # pragma: no cover - compiled
    """Pack 64-bit keys: offset from the smallest, its low bits cut off where it must be.

    Returns the largest number of bits cut off in any target; 0 means that nothing was lost.
    """
    most = np.uint64(0)
    room = np.uint64(64) - index_bits
    for target in range(keys.shape[0]):
        smallest, largest = keys[target, 0], keys[target, 0]
        for row in range(keys.shape[1]):
            smallest, largest = min(smallest, keys[target, row]), max(largest, keys[target, row])
        spread = largest - smallest
        shift = np.uint64(0)
        while shift < index_bits and (spread >> shift) >> room:
            shift += np.uint64(1)
        most = max(most, shift)
        for row in range(keys.shape[1]):
            offset = (keys[target, row] - smallest) >> shift
            packed[target, row] = (offset << index_bits) | np.uint64(row)
    return most


@njit(nogil=True, cache=True)
def _ranks(
    packed: NDArray[Any],
    index_bits: np.uint64,
    has_nan: NDArray[np.bool_],
    ranks: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Scatter doubled centred ranks of sorted ``packed`` rows; equal keys share the mean rank."""
    low = (np.uint64(1) << index_bits) - np.uint64(1)
    count = packed.shape[1]
    for target in range(packed.shape[0]):
        if has_nan[target]:
            continue
        first = 0
        while first < count:
            key = np.uint64(packed[target, first]) >> index_bits
            last = first + 1
            while last < count and np.uint64(packed[target, last]) >> index_bits == key:
                last += 1
            rank = np.int32(first + last - count)
            for place in range(first, last):
                ranks[target, np.int64(np.uint64(packed[target, place]) & low)] = rank
            first = last


@njit(nogil=True, cache=True)
def _ranks_with_collisions(
    packed: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    index_bits: np.uint64,
    has_nan: NDArray[np.bool_],
    ranks: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """As ``_ranks``, where equal packed keys may still differ in the bits that were cut off."""
    low = (np.uint64(1) << index_bits) - np.uint64(1)
    count = packed.shape[1]
    for target in range(packed.shape[0]):
        if has_nan[target]:
            continue
        first = 0
        while first < count:
            key = packed[target, first] >> index_bits
            last = first + 1
            while last < count and packed[target, last] >> index_bits == key:
                last += 1
            if last == first + 1:
                ranks[target, np.int64(packed[target, first] & low)] = first + last - count
                first = last
                continue
            rows = (packed[target, first:last] & low).astype(np.int64)
            order = np.argsort(keys[target][rows])
            rows = rows[order]
            full = keys[target][rows]
            start = 0
            while start < last - first:
                stop = start + 1
                while stop < last - first and full[stop] == full[start]:
                    stop += 1
                rank = np.int32(2 * first + start + stop - count)
                for place in range(start, stop):
                    ranks[target, rows[place]] = rank
                start = stop
            first = last

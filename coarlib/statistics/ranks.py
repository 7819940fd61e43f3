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
from numpy.typing import NDArray

from coarlib.compiled import njit, worth_compiling
from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array, clean_booleans, in_threads

__all__ = ["MOST_ROWS", "doubled_ranks"]

MOST_ROWS = 2**21  # M * (M - 1)**2, the largest sum of products, stays below 2**63
_TILE_WORDS = 2**19  # words a thread sorts at a time: fits in a level-2 cache
_ROWS_A_BLOCK = 8
SMALL = 2**20  # values that are sorted faster than the sorting below is compiled
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
    if not worth_compiling(array.size, SMALL):
        lines = np.ascontiguousarray(array.T if axis == 0 else array)
        lines = clean_booleans(lines) if lines.dtype == bool else lines
        has_nan[:] = np.isnan(lines).any(1) if is_float else False
        ranks[:] = _rank_by_sorting(lines)
        ranks[has_nan] = 0
        return ranks, has_nan

    def rank_tile(tile: slice) -> None:
        _rank_tile(columns[:, tile], is_float, ranks[tile], has_nan[tile])

    in_threads(rank_tile, targets, min(512, max(16, _TILE_WORDS // count)))
    return ranks, has_nan


def _as_ordered_bits(array: NDArray[Any]) -> NDArray[Any]:
    """View real values as unsigned bits of 16, 32 or 64; integers keep two's complement."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        array = clean_booleans(np.ascontiguousarray(array))
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
    packs = _U64(0 if width == 64 else index_bits)
    _keys(bits, keys, (_SIGN[width], _EXPONENT[width]), is_float, packs, has_nan)
    packed, shift = keys, 0
    if width == 64:
        packed = np.empty_like(keys)
        shift = int(_pack_shifted(keys, packed, _U64(index_bits)))
    packed.sort(axis=1)
    tied = np.zeros(targets, dtype=np.bool_)
    _ranks(packed, _U64(index_bits), ranks, tied)
    if shift and tied.any():  # equal but for the bits cut off, perhaps
        ranks[tied] = _rank_by_sorting(keys[tied])
    ranks[has_nan] = 0


@njit(nogil=True)
def _keys(  # noqa: PLR0917 - compiled, positional
    bits: NDArray[Any],
    keys: NDArray[Any],
    layout: tuple[np.uint64, np.uint64],
    is_float: bool,
    index_bits: np.uint64,
    has_nan: NDArray[np.bool_],
) -> None:  # pragma: no cover - compiled
    """Transpose ``bits`` [M, T] into monotone integer keys [T, M]; flag NaN columns.

    Row numbers are packed below the keys if they are given room (``index_bits`` not 0). Rows are
    taken a few at a time, so that a whole line of memory is written at once.
    """
    sign, exponent = layout
    magnitude = sign - np.uint64(1)
    pack = np.uint64(0) if index_bits == 0 else ~np.uint64(0)
    count = bits.shape[0]
    for start in range(0, count, _ROWS_A_BLOCK):
        stop = min(start + _ROWS_A_BLOCK, count)
        for column in range(bits.shape[1]):
            nan: bool | np.bool_ = False
            for row in range(start, stop):
                value = np.uint64(bits[row, column])
                if is_float:
                    size = value & magnitude
                    nan = nan | (size > exponent)
                    value = sign - size if value & sign else sign + size  # -0 becomes +0
                else:
                    value ^= sign
                keys[column, row] = (value << index_bits) | (np.uint64(row) & pack)
            has_nan[column] |= nan


@njit(nogil=True)
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


@njit(nogil=True)
def _ranks(
    packed: NDArray[Any],
    index_bits: np.uint64,
    ranks: NDArray[np.int32],
    tied: NDArray[np.bool_],
) -> None:  # pragma: no cover - compiled
    """Scatter doubled centred ranks of sorted ``packed`` rows; equal keys share the mean rank.

    ``tied`` says which rows have equal keys.

    Where a run of equal keys begins, then where it ends: two passes without a branch on the data,
    which a processor could not predict.
    """
    low = (np.uint64(1) << index_bits) - np.uint64(1)
    count = packed.shape[1]
    firsts = np.empty(count, dtype=np.int32)
    for target in range(packed.shape[0]):
        row = packed[target]
        first, before, equal = np.int32(0), np.uint64(row[0]) >> index_bits, -1
        for place in range(count):
            key = np.uint64(row[place]) >> index_bits
            equal += key == before
            first = first if key == before else np.int32(place)
            firsts[place] = first
            before = key
        tied[target] = equal > 0
        last, after = np.int32(count), before
        for place in range(count - 1, -1, -1):
            value = np.uint64(row[place])
            key = value >> index_bits
            last = last if key == after else np.int32(place + 1)
            ranks[target, np.int64(value & low)] = firsts[place] + last - np.int32(count)
            after = key


def _rank_by_sorting(keys: NDArray[Any]) -> NDArray[np.int32]:
    """Doubled centred ranks of each line of [T, M], by NumPy: nothing is compiled."""
    count = keys.shape[1]
    order = np.argsort(keys, axis=1, kind="stable")
    in_order = np.take_along_axis(keys, order, axis=1)
    begins = np.ones(keys.shape, dtype=bool)
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ends = np.ones(keys.shape, dtype=bool)
    ends[:, :-1] = begins[:, 1:]
    places = np.arange(count, dtype=np.int32)
    firsts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    lasts = np.minimum.accumulate(np.where(ends, places + 1, count)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(keys.shape, dtype=np.int32)
    np.put_along_axis(ranks, order, (firsts + lasts - count).astype(np.int32), axis=1)
    return ranks

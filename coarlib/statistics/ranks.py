"""Exact average ranks of many columns at once.

Numbers of 16 bits or fewer are counted: how many rows have each value gives its rank. Others are
sorted by radix: a line through a column's values, which keeps their order, takes them to whole
numbers of a few bits more than the row numbers have; two passes sort these, and the few values that
fall on one number are put in order by comparing them. What lies so unevenly that this does not pay
goes to NumPy's sort. Ties are found by comparing the values themselves, so a rank never depends on
rounding, blocking or threads.

Ranks are stored doubled and centred, as integers: ``2 * average_rank - (M + 1)`` with ranks from
1 to M. Their sum is zero and their products add up exactly in 64 bits, so that a rank correlation
is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import worth_compiling
from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array, clean_booleans, in_threads
from coarlib.statistics.rank_kernels import SIGN, count_keys, make_keys, rank_lines, transpose

__all__ = ["MOST_ROWS", "doubled_ranks"]

MOST_ROWS = 2**21  # M * (M - 1)**2, the largest sum of products, stays below 2**63
SMALL = 2**20  # values that are sorted faster than the sorting below is compiled
_TILE_BYTES = 2**20  # a thread ranks at a time: fits in a level-2 cache
_COUNTED = 4096  # from so many rows on, 2^16 counts are fewer steps than sorting
_SPARE_BITS = 4  # of the whole numbers beyond those of row numbers: few values fall on one


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
    columns = array if axis == 0 else array.T
    count, targets = columns.shape
    if count > MOST_ROWS:
        raise ScoringError(f"{count} values a target are too many to rank; at most {MOST_ROWS}")
    ranks = np.zeros((targets, count), dtype=np.int32)
    has_nan = np.zeros(targets, dtype=bool)
    if count == 0:
        return ranks, has_nan
    if not columns.dtype.isnative:
        columns = columns.astype(columns.dtype.newbyteorder("="))
    if not worth_compiling(array.size, SMALL):
        _rank_by_numpy(np.ascontiguousarray(columns.T), ranks, has_nan)
        return ranks, has_nan
    dtype, bits = columns.dtype, columns.view(f"u{columns.itemsize}")

    def rank_tile(tile: slice) -> None:
        lines = np.empty((tile.stop - tile.start, count), dtype=bits.dtype)
        transpose(bits[:, tile], lines)
        if dtype.itemsize <= 2 and count >= _COUNTED:
            _rank_by_counting(lines, dtype, ranks[tile], has_nan[tile])
        else:
            _rank_by_radix(lines.view(dtype), ranks[tile], has_nan[tile])

    size = _TILE_BYTES // (count * dtype.itemsize)
    in_threads(rank_tile, targets, min(512, max(16, size)))
    return ranks, has_nan


def _rank_by_numpy(
    lines: NDArray[Any], ranks: NDArray[np.int32], has_nan: NDArray[np.bool_]
) -> None:
    """Rank each line of [T, M] by NumPy's sort: nothing is compiled."""
    if lines.dtype.kind == "b":
        lines = clean_booleans(lines)
    has_nan[:] = np.isnan(lines).any(1) if lines.dtype.kind == "f" else False
    count = lines.shape[1]
    order = np.argsort(lines, axis=1, kind="stable")
    in_order = np.take_along_axis(lines, order, axis=1)
    begins = np.ones(lines.shape, dtype=bool)
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ends = np.ones(lines.shape, dtype=bool)
    ends[:, :-1] = begins[:, 1:]
    places = np.arange(count, dtype=np.int32)
    firsts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    lasts = np.minimum.accumulate(np.where(ends, places + 1, count)[:, ::-1], axis=1)[:, ::-1]
    np.put_along_axis(ranks, order, (firsts + lasts - count).astype(np.int32), axis=1)
    ranks[has_nan] = 0


def _rank_by_counting(
    bits: NDArray[Any],
    dtype: np.dtype[Any],
    ranks: NDArray[np.int32],
    has_nan: NDArray[np.bool_],
) -> None:
    """Rank each line of [T, M], the ``bits`` of numbers of at most 16 bits, by counting them."""
    if dtype.kind == "f":
        keys = bits
        make_keys(keys, has_nan)
    elif dtype.kind == "i":
        keys = bits.view(dtype).astype(np.int16).view(np.uint16) ^ SIGN
    else:
        keys = (bits != 0 if dtype.kind == "b" else bits).astype(np.uint16)
    count_keys(keys, ranks)
    ranks[has_nan] = 0


def _rank_by_radix(
    lines: NDArray[Any], ranks: NDArray[np.int32], has_nan: NDArray[np.bool_]
) -> None:
    """Rank each line of [T, M] by radix; by NumPy where values lie too unevenly for it."""
    if lines.dtype.itemsize < 4:
        lines = (lines != 0 if lines.dtype.kind == "b" else lines).astype(np.float32)
    uneven = np.zeros(len(lines), dtype=np.bool_)
    index_bits = max(1, int(lines.shape[1] - 1).bit_length())
    rank_lines(lines, np.uint64(index_bits), np.uint64(index_bits + _SPARE_BITS), ranks, uneven)
    if uneven.any():
        found, flags = np.empty_like(ranks[uneven]), has_nan[uneven]
        _rank_by_numpy(lines[uneven], found, flags)
        ranks[uneven], has_nan[uneven] = found, flags

"""What of the moments is compiled: pair counts, column sums, and X'Y by adding rows.

Imported where it is used, since numba takes a while.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from coarlib.compiled import njit

__all__ = ["ROWS", "add_counts", "add_listed", "list_rows", "pack", "sums_of_columns"]

_COLUMNS = 256  # sums over them stay in the level-1 cache
_TILE = 32  # features in a tile: 2 tiles of 2^14 rows are 128 KiB, half a level-2 cache
ROWS, _TARGETS = 1024, 256  # a tile of outputs (float32: 1 MiB) stays in the level-2 cache


def _popcount_code(context: Any, word: Any) -> Any:
    """Number of set bits of a uint64, the processor's instruction where it has one."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_popcount: Any = intrinsic(_popcount_code)


@njit(parallel=True)
def pack(masks: NDArray[np.uint8], words: NDArray[np.uint64]) -> None:  # pragma: no cover
    """Pack the columns of ``masks`` [B, N] into ``words`` [N, ceil(B / 64)]."""
    rows, features = masks.shape
    for w in prange(words.shape[1]):
        packed = np.zeros(features, np.uint64)
        for r in range(min(64, rows - 64 * w)):
            for j in range(features):
                packed[j] |= np.uint64(masks[64 * w + r, j]) << np.uint64(r)
        for j in range(features):
            words[j, w] = packed[j]


@njit(parallel=True)
def add_counts(words: NDArray[np.uint64], counts: NDArray[np.int32]) -> None:  # pragma: no cover
    """Add popcount(words[i] & words[j]) to the upper triangle of ``counts``, 2 × 2 at a time."""
    features, width = words.shape
    tiles = (features + _TILE - 1) // _TILE
    for tile in prange(tiles * tiles):
        ti, tj = tile // tiles, tile % tiles
        if tj < ti:
            continue
        for i in range(ti * _TILE, min(features, (ti + 1) * _TILE), 2):
            i2 = min(i + 1, features - 1)
            for j in range(max(tj * _TILE, i), min(features, (tj + 1) * _TILE), 2):
                j2 = min(j + 1, features - 1)
                aa, ab, ba, bb = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
                for w in range(width):
                    x, y, u, v = words[i, w], words[i2, w], words[j, w], words[j2, w]
                    aa += _popcount(x & u)
                    ab += _popcount(x & v)
                    ba += _popcount(y & u)
                    bb += _popcount(y & v)
                counts[i, j] += np.int32(aa)
                if j2 > j:
                    counts[i, j2] += np.int32(ab)
                if i2 > i:
                    counts[i2, j] += np.int32(ba)
                if i2 > i and j2 > j:
                    counts[i2, j2] += np.int32(bb)


@njit(parallel=True, fastmath={"contract", "reassoc", "nsz"})
def sums_of_columns(values: NDArray[Any]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Return Σ and Σ² of each column."""
    rows, columns = values.shape
    sums = np.zeros((2, columns))
    for block in prange((columns + _COLUMNS - 1) // _COLUMNS):
        first = block * _COLUMNS
        width = min(_COLUMNS, columns - first)
        total, square = np.zeros(_COLUMNS), np.zeros(_COLUMNS)
        for r in range(rows):
            for j in range(width):
                value = np.float64(values[r, first + j])
                total[j] += value
                square[j] += value * value
        sums[0, first : first + width] = total[:width]
        sums[1, first : first + width] = square[:width]
    return sums


@njit(parallel=True)
def list_rows(
    masks: NDArray[np.bool_], skipped: bool, starts: NDArray[np.int64], rows: NDArray[np.int16]
) -> None:  # pragma: no cover - compiled
    """List the rows of each chunk whose mask is not ``skipped``, feature by feature."""
    features = masks.shape[1]
    for chunk in prange(len(starts)):
        first, stop = chunk * ROWS, min(len(masks), (chunk + 1) * ROWS)
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
def add_listed(
    starts: NDArray[np.int64], rows: NDArray[np.int16], values: NDArray[Any], out: NDArray[Any]
) -> None:  # pragma: no cover - compiled
    """Add the listed rows of ``values`` [B, T] to each feature's line of ``out`` [N, T]."""
    count, targets = values.shape
    for tile in prange((targets + _TARGETS - 1) // _TARGETS):
        first = tile * _TARGETS
        width = min(_TARGETS, targets - first)
        y = np.zeros((ROWS, _TARGETS), values.dtype)
        total = np.zeros(_TARGETS, values.dtype)
        for chunk in range(len(starts)):
            here = min(ROWS, count - chunk * ROWS)
            for r in range(here):
                y[r, :width] = values[chunk * ROWS + r, first : first + width]
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

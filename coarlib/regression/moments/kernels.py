"""What of the moments is compiled: pair counts, column sums, and X'Y by adding rows.

Imported where it is used, since numba takes a while.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from coarlib.compiled import njit

__all__ = ["ROWS", "add_counts", "add_listed", "list_rows", "mirror", "pack", "sums_of_columns"]

_COLUMNS = 256  # sums over them stay in the level-1 cache
_TILE = 32  # features in a tile: 2 tiles of 2^14 rows are 128 KiB, half a level-2 cache
ROWS, _TARGETS = 1024, 256  # a tile of outputs (float32: 1 MiB) stays in the level-2 cache


def _popcount_code(context: Any, word: Any) -> Any:
    """Number of set bits of a uint64, the processor's instruction where it has one."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def _lowest_bit_code(context: Any, word: Any) -> Any:
    """Place of the lowest set bit of a uint64 that is not 0."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


_popcount: Any = intrinsic(_popcount_code)
_lowest_bit: Any = intrinsic(_lowest_bit_code)


@njit(parallel=True)
def pack(masks: NDArray[np.uint8]) -> NDArray[np.uint64]:  # pragma: no cover - compiled
    """Pack the columns of ``masks`` [B, N] into the bits of words [N, ceil(B / 64)]."""
    rows, features = masks.shape
    words = np.empty((features, (rows + 63) // 64), np.uint64)
    for w in prange(words.shape[1]):
        packed = np.zeros(features, np.uint64)
        for r in range(min(64, rows - 64 * w)):
            for j in range(features):
                packed[j] |= np.uint64(masks[64 * w + r, j]) << np.uint64(r)
        for j in range(features):
            words[j, w] = packed[j]
    return words


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
def mirror(counts: NDArray[np.int32]) -> None:  # pragma: no cover - compiled
    """Copy the upper triangle onto the lower one."""
    features = len(counts)
    tiles = (features + _TILE - 1) // _TILE
    for tile in prange(tiles * tiles):
        ti, tj = tile // tiles, tile % tiles
        for i in range(ti * _TILE, min(features, (ti + 1) * _TILE)):
            for j in range(tj * _TILE, min(i, (tj + 1) * _TILE)):
                counts[i, j] = counts[j, i]


@njit(parallel=True)
def list_rows(
    words: NDArray[np.uint64], flips: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int16]]:  # pragma: no cover - compiled
    """List the rows of each chunk whose bit of ``words ^ flips`` is set, feature by feature.

    Returns
    -------
    starts : int64 [chunks, N + 1]
        Where the rows of each feature begin among those of the chunk.
    rows : int16 [chunks, most], counted within the chunk
    """
    features, width = words.shape
    each = ROWS // 64
    chunks = (width + each - 1) // each
    starts = np.zeros((chunks, features + 1), np.int64)
    for chunk in prange(chunks):
        for j in range(features):
            number = np.uint64(0)
            for w in range(chunk * each, min(width, (chunk + 1) * each)):
                number += _popcount(words[j, w] ^ flips[w])
            starts[chunk, j + 1] = starts[chunk, j] + np.int64(number)
    rows = np.empty((chunks, starts[:, features].max()), np.int16)
    for chunk in prange(chunks):
        at = 0
        for j in range(features):
            for w in range(chunk * each, min(width, (chunk + 1) * each)):
                left = words[j, w] ^ flips[w]
                while left:
                    rows[chunk, at] = 64 * (w - chunk * each) + np.int64(_lowest_bit(left))
                    left &= left - np.uint64(1)
                    at += 1
    return starts, rows


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
                while i + 8 <= end:
                    a, b = y[rows[chunk, i]], y[rows[chunk, i + 1]]
                    c, d = y[rows[chunk, i + 2]], y[rows[chunk, i + 3]]
                    e, f = y[rows[chunk, i + 4]], y[rows[chunk, i + 5]]
                    g, h = y[rows[chunk, i + 6]], y[rows[chunk, i + 7]]
                    for k in range(_TARGETS):
                        first_half = (a[k] + b[k]) + (c[k] + d[k])
                        total[k] += first_half + ((e[k] + f[k]) + (g[k] + h[k]))
                    i += 8
                while i < end:
                    a = y[rows[chunk, i]]
                    for k in range(_TARGETS):
                        total[k] += a[k]
                    i += 1
                for k in range(width):
                    out[j, first + k] += total[k]

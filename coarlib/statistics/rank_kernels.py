"""What of the ranks is compiled: transposing, counting keys of 16 bits, and sorting by radix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import njit

__all__ = ["SIGN", "count_keys", "make_keys", "rank_lines", "transpose"]

SIGN = np.uint16(0x8000)  # of a float16
_INFINITY = np.uint16(0x7C00)
_ROWS_A_BLOCK = 8  # of 64 bits: a line of memory
_REACH = 5.0  # mean absolute deviations that the whole numbers span on either side of the mean
_MOVES = 16  # a row, at most, to put in order what falls on one number


@njit(nogil=True)
def transpose(values: NDArray[Any], lines: NDArray[Any]) -> None:  # pragma: no cover - compiled
    """Copy [M, T] to [T, M], some rows at a time: a line of memory is written at once."""
    count = values.shape[0]
    whole = count // _ROWS_A_BLOCK * _ROWS_A_BLOCK
    for start in range(0, whole, _ROWS_A_BLOCK):
        for column in range(values.shape[1]):
            for row in range(_ROWS_A_BLOCK):
                lines[column, start + row] = values[start + row, column]
    for row in range(whole, count):
        for column in range(values.shape[1]):
            lines[column, row] = values[row, column]


@njit(nogil=True)
def make_keys(
    bits: NDArray[np.uint16], has_nan: NDArray[np.bool_]
) -> None:  # pragma: no cover - compiled
    """Turn the bits of float16, sign and magnitude, into keys of their order; flag NaN lines."""
    for line in range(bits.shape[0]):
        most = np.uint16(0)
        for row in range(bits.shape[1]):
            size = bits[line, row] & ~SIGN
            most = max(most, size)
            negative = bits[line, row] & SIGN
            bits[line, row] = SIGN - size if negative else SIGN + size  # -0 becomes +0
        has_nan[line] = most > _INFINITY


@njit(nogil=True)
def count_keys(
    keys: NDArray[np.uint16], ranks: NDArray[np.int32]
) -> None:  # pragma: no cover - compiled
    """Rank each line: rows of one key share the mean of the ranks that follow all smaller keys."""
    counts = np.zeros(2**16, dtype=np.int32)
    rank_of = np.empty(2**16, dtype=np.int32)
    for line in range(keys.shape[0]):
        smallest, largest = np.uint16(2**16 - 1), np.uint16(0)
        for row in range(keys.shape[1]):
            smallest, largest = min(smallest, keys[line, row]), max(largest, keys[line, row])
        for row in range(keys.shape[1]):
            counts[keys[line, row]] += 1
        below = np.int32(-keys.shape[1])
        for key in range(np.int64(smallest), np.int64(largest) + 1):
            equal = counts[key]
            counts[key] = 0
            rank_of[key] = below + equal
            below += np.int32(2) * equal
        for row in range(keys.shape[1]):
            ranks[line, row] = rank_of[keys[line, row]]


@njit(nogil=True)
def rank_lines(
    lines: NDArray[Any],
    index_bits: np.uint64,
    bits: np.uint64,
    ranks: NDArray[np.int32],
    uneven: NDArray[np.bool_],
) -> None:  # pragma: no cover - compiled
    """Rank the lines that lie evenly; those with NaN or infinities count as uneven."""
    count = lines.shape[1]
    low = (np.uint64(1) << index_bits) - np.uint64(1)
    digit = (bits + np.uint64(1)) >> np.uint64(1)
    packed, other = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.uint64)
    starts = np.empty((2, np.int64(1) << np.int64(digit)), dtype=np.int32)
    order, firsts = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    in_order = np.empty(count, dtype=lines.dtype)
    for line in range(lines.shape[0]):
        values = lines[line]
        if not _pack(values, index_bits, bits, packed):
            uneven[line] = True
            continue
        _sort_by_two_digits(packed, other, index_bits, digit, starts)
        if not _order(values, packed, low, order, in_order):
            uneven[line] = True
            continue
        _scatter(order, in_order, firsts, ranks[line])


@njit(nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _spread(values: NDArray[Any]) -> tuple[float, float]:  # pragma: no cover - compiled
    """Mean and mean absolute deviation, somewhat rounded; not finite where a value is not."""
    total, deviation = 0.0, 0.0
    for row in range(len(values)):
        total += np.float64(values[row])
    mean = total / len(values)
    for row in range(len(values)):
        deviation += abs(np.float64(values[row]) - mean)
    return mean, deviation / len(values)


@njit(nogil=True)
def _pack(
    values: NDArray[Any], index_bits: np.uint64, bits: np.uint64, packed: NDArray[np.uint64]
) -> bool:  # pragma: no cover - compiled
    """Pack whole numbers of so many ``bits``, in the order of the values, above row numbers.

    Subtracting, multiplying and cutting to a whole number keep the order of what they round.
    """
    mean, deviation = _spread(values)
    top = np.float64((np.uint64(1) << bits) - np.uint64(1))
    origin, slope = mean - _REACH * deviation, top / (2 * _REACH * max(deviation, 1e-300))
    if not (np.isfinite(origin) and np.isfinite(slope)):
        return False
    for row in range(len(values)):
        place = (np.float64(values[row]) - origin) * slope
        place = 0.0 if place < 0.0 else place
        place = top if place > top else place
        packed[row] = (np.uint64(np.int64(place)) << index_bits) | np.uint64(row)
    return True


@njit(nogil=True)
def _sort_by_two_digits(
    packed: NDArray[np.uint64],
    other: NDArray[np.uint64],
    index_bits: np.uint64,
    digit: np.uint64,
    starts: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Sort what lies above the row numbers, two digits of so many bits, the lower one first."""
    mask = (np.uint64(1) << digit) - np.uint64(1)
    above = index_bits + digit
    starts[:] = 0
    for row in range(len(packed)):
        starts[0, (packed[row] >> index_bits) & mask] += 1
        starts[1, packed[row] >> above] += 1
    first, second = np.int32(0), np.int32(0)
    for key in range(starts.shape[1]):
        lower, upper = starts[0, key], starts[1, key]
        starts[0, key], starts[1, key] = first, second
        first += lower
        second += upper
    for row in range(len(packed)):
        key = (packed[row] >> index_bits) & mask
        other[np.uint64(starts[0, key])] = packed[row]
        starts[0, key] += 1
    for row in range(len(packed)):
        key = other[row] >> above
        packed[np.uint64(starts[1, key])] = other[row]
        starts[1, key] += 1


@njit(nogil=True)
def _order(
    values: NDArray[Any],
    packed: NDArray[np.uint64],
    low: np.uint64,
    order: NDArray[np.int32],
    in_order: NDArray[Any],
) -> bool:  # pragma: no cover - compiled
    """Unpack row numbers; insert values that share a number by comparing. False for too many."""
    moves = _MOVES * len(packed)
    last = values[packed[0] & low]
    for place in range(len(packed)):
        row = packed[place] & low
        value = values[row]
        at = place
        if value < last:
            while at > 0 and in_order[at - 1] > value:
                in_order[at], order[at] = in_order[at - 1], order[at - 1]
                at -= 1
            moves -= place - at
            if moves < 0:
                return False
        else:
            last = value
        in_order[at], order[at] = value, row
    return True


@njit(nogil=True)
def _scatter(
    order: NDArray[np.int32],
    in_order: NDArray[Any],
    firsts: NDArray[np.int32],
    ranks: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Give each row the doubled centred rank of its place; equal values share the mean rank.

    Where a run of equal values begins, then where it ends: two passes without a branch on the
    data, which a processor could not predict.
    """
    count, ties = len(order), 0
    for place in range(1, count):
        ties += in_order[place] == in_order[place - 1]
    if ties == 0:
        for place in range(count):
            ranks[np.uint64(order[place])] = 2 * place + 1 - count
        return
    first = np.int32(0)
    firsts[0] = 0
    for place in range(1, count):
        first = first if in_order[place] == in_order[place - 1] else np.int32(place)
        firsts[place] = first
    last, after = np.int32(count), in_order[count - 1]
    for place in range(count - 1, -1, -1):
        last = last if in_order[place] == after else np.int32(place + 1)
        ranks[np.uint64(order[place])] = firsts[place] + last - np.int32(count)
        after = in_order[place]

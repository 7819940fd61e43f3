"""Compiled products with vectors of examples; imported where used, as numba takes a while.

A model's weights are shared by its examples, over which vectors run: every product is a vector
times a number or another vector, a block of sums stays in registers, and nothing is gathered into
patches first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.retraining.vectors import (
    FLOAT,
    INT,
    ITEM,
    LANES,
    VECTOR,
    WIDE,
    ZEROS,
    Values,
    everywhere,
    load,
    loop,
    multiply_add,
    store,
    table_pair,
    totals,
)

__all__ = ["add_up", "correlate"]

_BLOCK = 4  # channels whose accumulators are in registers together
_TALL = 8  # the same, where the other factor has a single channel
_MOST = 4 if WIDE else 2  # vectors of a channel's accumulators


def _correlation(vectors: int) -> Any:
    """Of one place: :data:`_BLOCK` outputs, each a sum over channels and a table's pairs.

    Arguments are addresses, strides and places in bytes, but for counts. Of a block that is not
    full, the last output is computed more than once.
    """

    def typed(  # noqa: PLR0917
        context: Any,
        x: Any,
        weight: Any,
        bias: Any,
        out: Any,
        rows: Any,
        channels: Any,
        strides: Any,
        table: Any,
        count: Any,
        relu: Any,
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            x, weight, bias, out, rows, channels, strides, table, count, relu = arguments
            of_x, of_weight, of_row, of_bias, of_out = cgutils.unpack_tuple(b, strides)
            last = b.sub(rows, INT(1))
            numbers = [
                b.select(b.icmp_signed("<", INT(row), last), INT(row), last)
                for row in range(_BLOCK)
            ]
            weights = [b.add(weight, b.mul(number, of_row)) for number in numbers]

            def channel(c: Any, sums: Values) -> Values:
                first, own = b.add(x, b.mul(c, of_x)), b.mul(c, of_weight)

                def tap(i: Any, sums: Values) -> Values:
                    at, away = map(b.add, (first, own), table_pair(b, table, i))
                    some = [
                        load(b, b.add(at, INT(ITEM * LANES * v)), VECTOR) for v in range(vectors)
                    ]
                    found = []
                    for row in range(_BLOCK):
                        factor = everywhere(b, load(b, b.add(weights[row], away), FLOAT))
                        for v in range(vectors):
                            total = sums[row * vectors + v]
                            found.append(multiply_add(b, some[v], factor, total))
                    return found

                return loop(b, count, sums, tap)

            starts = [
                everywhere(b, load(b, b.add(bias, b.mul(number, of_bias)), FLOAT))
                for number in numbers
            ]
            sums = loop(b, channels, [one for one in starts for _ in range(vectors)], channel)
            cut = b.icmp_signed("!=", relu, INT(0))
            for place, whole in enumerate(sums):
                below = b.select(b.fcmp_ordered("<", whole, ZEROS), ZEROS, whole)
                total = b.select(cut, below, whole)
                row, v = divmod(place, vectors)
                at = b.add(out, b.mul(numbers[row], of_out))
                store(b, total, b.add(at, INT(ITEM * LANES * v)))
            return context.get_dummy_value()

        kinds = [types.intp] * 6 + [types.UniTuple(types.intp, 5)] + [types.intp] * 3
        return types.void(*kinds), generate

    return intrinsic(typed)


def _inner_products(rows: int, columns: int) -> Any:
    """Add to ``out`` [rows, columns] sums over a table's pairs of places of products of channels.

    Arguments are addresses, strides and places in bytes, but for the two counts.
    """

    def typed(  # noqa: PLR0917
        context: Any,
        left: Any,
        left_stride: Any,
        right: Any,
        right_stride: Any,
        table: Any,
        count: Any,
        vectors: Any,
        out: Any,
        of_row: Any,
        of_column: Any,
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            left, left_stride, right, right_stride, table, count, vectors = arguments[:7]
            out, of_row, of_column = arguments[7:]

            def pair(i: Any, sums: Values) -> Values:
                starts = list(map(b.add, (left, right), table_pair(b, table, i)))

                def lanes(v: Any, sums: Values) -> Values:
                    at = [b.add(start, b.mul(v, INT(ITEM * LANES))) for start in starts]
                    some, others = (
                        [
                            load(b, b.add(place, b.mul(INT(k), stride)), VECTOR)
                            for k in range(number)
                        ]
                        for place, stride, number in zip(
                            at, (left_stride, right_stride), (rows, columns), strict=True
                        )
                    )
                    both = [(one, other) for one in some for other in others]
                    return [
                        multiply_add(b, *factors, total)
                        for factors, total in zip(both, sums, strict=True)
                    ]

                return loop(b, vectors, sums, lanes)

            sums = loop(b, count, [ZEROS] * (rows * columns), pair)
            for place, total in enumerate(totals(b, sums)):
                row, column = divmod(place, columns)
                at = b.add(b.add(out, b.mul(INT(row), of_row)), b.mul(INT(column), of_column))
                store(b, b.fadd(load(b, at, FLOAT), total), at)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return intrinsic(typed)


_at_most, _at_two, _at_one = (_correlation(vectors) for vectors in (_MOST, 2, 1))
_block, _row, _tall, _entry = (
    _inner_products(*shape) for shape in ((_BLOCK, _BLOCK), (1, _BLOCK), (_TALL, 1), (1, 1))
)


@njit(nogil=True)
def correlate(  # noqa: PLR0917
    x: int,
    weight: int,
    bias: int,
    out: int,
    size: tuple[int, int, int],
    strides: tuple[int, int, int, int, int],
    starts: NDArray[np.int64],
    table: NDArray[np.int32],
    relu: bool,
) -> None:  # pragma: no cover - compiled
    """Sum what reaches each place of ``out`` [O, Q, B] from the places of ``x`` [C, P, B].

    ``x``, ``weight``, ``bias`` and ``out`` are addresses, ``size`` is (C, O, B) with B a multiple
    of :data:`LANES`, ``strides`` are the bytes between channels of ``x`` and of ``weight`` and
    between outputs of ``weight``, ``bias`` and ``out``. Rows starts[q] to starts[q + 1] of
    ``table`` are what reaches place q: bytes to a place in a channel of ``x``, and to a tap in
    ``weight``.
    """
    channels, outputs, batch = size
    of_row, of_bias, of_out = strides[2:]
    for o in range(0, outputs, _BLOCK):
        own, first, rows = weight + o * of_row, bias + o * of_bias, min(_BLOCK, outputs - o)
        for q in range(len(starts) - 1):
            pairs, count = table.ctypes.data + 8 * starts[q], starts[q + 1] - starts[q]
            rest = rows, channels, strides, pairs, count, int(relu)
            here, to = x, out + o * of_out + 4 * q * batch
            left = batch // LANES
            while left:
                if left >= _MOST:
                    wide = _MOST
                    _at_most(here, own, first, to, *rest)
                elif left >= 2:
                    wide = 2
                    _at_two(here, own, first, to, *rest)
                else:
                    wide = 1
                    _at_one(here, own, first, to, *rest)
                here, to, left = here + 4 * LANES * wide, to + 4 * LANES * wide, left - wide


@njit(nogil=True)
def add_up(  # noqa: PLR0917
    left: int,
    right: int,
    out: NDArray[np.float32],
    strides: tuple[int, int],
    vectors: int,
    starts: NDArray[np.int64],
    table: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Sum products of ``left`` [O, Q, B] and ``right`` [C, P, B] into ``out`` [O, C, T].

    ``left`` and ``right`` are addresses, ``strides`` the bytes between their channels; B is so many
    vectors. For tap t, rows starts[n] to starts[n + 1] of ``table``, for n = t, T + t, 2 T + t …,
    are what it joins: bytes to a place in a channel of either.
    """
    outputs, channels, taps = out.shape
    of_left, of_right = strides
    out[:] = 0
    c = 0
    while c < channels:
        columns = _BLOCK if channels - c >= _BLOCK else 1
        most = _BLOCK if columns == _BLOCK else _TALL
        o = 0
        while o < outputs:
            rows = most if outputs - o >= most else 1
            here, there = left + o * of_left, right + c * of_right
            for n in range(len(starts) - 1):
                pairs, count = table.ctypes.data + 8 * starts[n], starts[n + 1] - starts[n]
                to = out.ctypes.data + 4 * ((o * channels + c) * taps + n % taps)
                given = here, of_left, there, of_right, pairs, count, vectors
                if rows == 1 and columns == 1:
                    _entry(*given, to, 4 * channels * taps, 4 * taps)
                elif rows == 1:
                    _row(*given, to, 4 * channels * taps, 4 * taps)
                elif columns == 1:
                    _tall(*given, to, 4 * channels * taps, 4 * taps)
                else:
                    _block(*given, to, 4 * channels * taps, 4 * taps)
            o += rows
        c += columns

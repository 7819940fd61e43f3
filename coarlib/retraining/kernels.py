"""Compiled convolutions with the batch last; imported where used, as numba takes a while.

Vectors run over examples, which share a model's weights: every product is a vector times a number,
a block of accumulators stays in registers, and nothing is gathered into patches first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
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
)

__all__ = ["BLOCK", "add_up", "correlate", "pass_relu"]

BLOCK = 4  # channels whose accumulators are in registers together
_MOST = 4 if WIDE else 2  # vectors of a channel's accumulators


def _correlation(vectors: int) -> Any:
    """Of one place: :data:`BLOCK` outputs, each a sum over channels and a table's pairs.

    Arguments are addresses, strides and places in bytes, but for the two counts.
    """

    def typed(  # noqa: PLR0917
        context: Any,
        x: Any,
        x_stride: Any,
        weight: Any,
        weight_stride: Any,
        bias: Any,
        table: Any,
        count: Any,
        channels: Any,
        out: Any,
        out_stride: Any,
        relu: Any,
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            (x, x_stride, weight, weight_stride, bias) = arguments[:5]
            (table, count, channels, out, out_stride, relu) = arguments[5:]

            def channel(c: Any, sums: Values) -> Values:
                own = b.add(x, b.mul(c, x_stride)), b.add(weight, b.mul(c, weight_stride))

                def tap(i: Any, sums: Values) -> Values:
                    places = map(b.add, own, table_pair(b, table, i))
                    at, weights = places
                    some = [
                        load(b, b.add(at, INT(ITEM * LANES * v)), VECTOR) for v in range(vectors)
                    ]
                    found = []
                    for row in range(BLOCK):
                        factor = load(b, b.add(weights, INT(ITEM * row)), FLOAT)
                        factor = everywhere(b, factor)
                        for v in range(vectors):
                            total = sums[row * vectors + v]
                            found.append(multiply_add(b, some[v], factor, total))
                    return found

                return loop(b, count, sums, tap)

            starts = [
                everywhere(b, load(b, b.add(bias, INT(ITEM * row)), FLOAT)) for row in range(BLOCK)
            ]
            sums = loop(b, channels, [one for one in starts for _ in range(vectors)], channel)
            cut = b.icmp_signed("!=", relu, INT(0))
            for place, whole in enumerate(sums):
                below = b.select(b.fcmp_ordered("<", whole, ZEROS), ZEROS, whole)
                total = b.select(cut, below, whole)
                row, v = divmod(place, vectors)
                at = b.add(out, b.mul(INT(row), out_stride))
                store(b, total, b.add(at, INT(ITEM * LANES * v)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return intrinsic(typed)


def _inner_products(rows: int, columns: int) -> Any:
    """Sums over a table's pairs of places, of ``rows`` × ``columns`` products of channels.

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
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            left, left_stride, right, right_stride, table, count, vectors, out = arguments

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
            kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            reduce = cgutils.get_or_insert_function(b.module, kind, name)
            for place, total in enumerate(sums):
                value = b.call(reduce, [ir.Constant(FLOAT, 0.0), total], fastmath=("reassoc",))
                store(b, value, b.add(out, INT(ITEM * place)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return intrinsic(typed)


_at_most, _at_two, _at_one = (_correlation(vectors) for vectors in (_MOST, 2, 1))
_block, _column, _entry = (
    _inner_products(*shape) for shape in ((BLOCK, BLOCK), (BLOCK, 1), (1, 1))
)


@njit(nogil=True)
def correlate(  # noqa: PLR0917
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    starts: NDArray[np.int64],
    table: NDArray[np.int32],
    out: NDArray[np.float32],
    relu: bool,
) -> None:  # pragma: no cover - compiled
    """Sum what reaches each place of ``out`` [G, O, Q, B] from the places of ``x`` [G, C, P, B].

    B is a multiple of :data:`LANES`. ``weight`` [G, blocks, C, T, BLOCK] and ``bias`` [G, blocks,
    BLOCK] are those of blocks of outputs, filled up with zeros. Rows starts[q] to starts[q + 1] of
    ``table`` are what reaches place q: bytes to a place in a channel of ``x``, and to a tap's row
    in a channel of a block's ``weight``.
    """
    groups, channels, places, batch = x.shape
    outputs, blocks, taps = out.shape[1], weight.shape[1], weight.shape[3]
    x_stride, weight_stride = 4 * places * batch, 4 * taps * BLOCK
    spare, cut = np.empty((BLOCK, _MOST * LANES), np.float32), int(relu)
    for g in range(groups):
        for q in range(out.shape[2]):
            pairs, count = table.ctypes.data + 8 * starts[q], starts[q + 1] - starts[q]
            for block in range(blocks):
                own = weight.ctypes.data + (g * blocks + block) * channels * weight_stride
                first = bias.ctypes.data + 4 * (g * blocks + block) * BLOCK
                rows = min(BLOCK, outputs - block * BLOCK)
                at = 0
                while at < batch:
                    here = x.ctypes.data + 4 * at + g * channels * x_stride
                    to, stride = spare.ctypes.data, 4 * _MOST * LANES
                    if rows == BLOCK:
                        to = out[g, block * BLOCK, q, at:].ctypes.data
                        stride = 4 * out.shape[2] * batch
                    wide = 1
                    if batch - at >= _MOST * LANES:
                        wide = _MOST
                        _at_most(
                            *(here, x_stride, own, weight_stride, first),
                            *(pairs, count, channels, to, stride, cut),
                        )
                    elif batch - at >= 2 * LANES:
                        wide = 2
                        _at_two(
                            *(here, x_stride, own, weight_stride, first),
                            *(pairs, count, channels, to, stride, cut),
                        )
                    else:
                        _at_one(
                            *(here, x_stride, own, weight_stride, first),
                            *(pairs, count, channels, to, stride, cut),
                        )
                    if rows < BLOCK:
                        for row in range(rows):
                            for lane in range(wide * LANES):
                                out[g, block * BLOCK + row, q, at + lane] = spare[row, lane]
                    at += wide * LANES


@njit(nogil=True)
def add_up(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    out: NDArray[np.float32],
    starts: NDArray[np.int64],
    table: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Sum products of ``left`` [G, O, Q, B] and ``right`` [G, C, P, B] into ``out`` [G, O, C, T].

    B is a multiple of :data:`LANES`. Rows starts[t] to starts[t + 1] of ``table`` are what tap t
    joins: bytes to a place in a channel of either.
    """
    groups, channels, places, batch = right.shape
    outputs, vectors = left.shape[1], batch // LANES
    left_stride, right_stride = 4 * left.shape[2] * batch, 4 * places * batch
    sums = np.empty(BLOCK * BLOCK, np.float32)
    to = sums.ctypes.data
    for g in range(groups):
        for t in range(out.shape[3]):
            pairs, count = table.ctypes.data + 8 * starts[t], starts[t + 1] - starts[t]
            o = 0
            while o < outputs:
                rows = BLOCK if outputs - o >= BLOCK else 1
                here = left.ctypes.data + (g * outputs + o) * left_stride
                c = 0
                while c < channels:
                    columns = BLOCK if rows == BLOCK and channels - c >= BLOCK else 1
                    there = right.ctypes.data + (g * channels + c) * right_stride
                    if columns == BLOCK:
                        _block(here, left_stride, there, right_stride, pairs, count, vectors, to)
                    elif rows == BLOCK:
                        _column(here, left_stride, there, right_stride, pairs, count, vectors, to)
                    else:
                        _entry(here, left_stride, there, right_stride, pairs, count, vectors, to)
                    for row in range(rows):
                        for column in range(columns):
                            out[g, o + row, c + column, t] = sums[row * columns + column]
                    c += columns
                o += rows


@njit(nogil=True, fastmath={"contract", "reassoc", "nsz"})
def pass_relu(
    gradient: NDArray[np.float32],
    out: NDArray[np.float32],
    passed: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Let a gradient [G, O, N] pass where a ReLU's ``out`` is not 0; sum [G, O] what passes."""
    for g in range(len(out)):
        for o in range(out.shape[1]):
            total = np.float32(0)
            given, after, kept = gradient[g, o], out[g, o], passed[g, o]
            for n in range(len(given)):
                value = np.float32(0) if after[n] <= 0 else given[n]
                kept[n] = value
                total += value
            sums[g, o] = total

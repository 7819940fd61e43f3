"""Compiled loops of layers with the batch last; imported where used, as numba takes a while.

Vectors run over examples, which share a model's weights: every product is a vector times a number,
a block of accumulators stays in registers, and nothing is gathered into patches first. Loops are
written in LLVM's own terms, as numba would not keep accumulators in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from coarlib.compiled import njit

__all__ = ["BLOCK", "LANES", "add_up", "correlate", "pass_relu", "pool", "unpool"]

_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _WIDE else 8  # numbers in a vector
BLOCK = 4  # channels whose accumulators are in registers together
_MOST = 4 if _WIDE else 2  # vectors of a channel's accumulators
_ITEM = 4  # bytes of a float32, and of a table's int32
_INT, _FLOAT = ir.IntType(64), ir.FloatType()
_VECTOR, _PLACES = (ir.VectorType(kind, LANES) for kind in (_FLOAT, ir.IntType(32)))
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
Values = Sequence[Any]


def _loop(b: Any, count: Any, carried: Values, body: Callable[[Any, Values], Values]) -> Values:
    """Emit ``for i in range(count): carried = body(i, carried)``."""
    before = b.block
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    index, *values = (b.phi(start.type) for start in (_INT(0), *carried))
    for phi, start in zip((index, *values), (_INT(0), *carried), strict=True):
        phi.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    found = body(index, values)
    for phi, value in zip((index, *values), (b.add(index, _INT(1)), *found), strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return values


def _load(b: Any, address: Any, kind: Any) -> Any:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=_ITEM)


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=_ITEM)


def _pair(b: Any, table: Any, row: Any) -> tuple[Any, Any]:
    """Load a row of an int32 table [n, 2]."""
    first = b.add(table, b.mul(row, _INT(2 * _ITEM)))
    both = (_load(b, place, ir.IntType(32)) for place in (first, b.add(first, _INT(_ITEM))))
    one, other = (b.sext(value, _INT) for value in both)
    return one, other


def _tap(b: Any, address: Any, table: Any, tap: Any) -> Any:
    """Return where a tap is, by an int32 table of bytes."""
    away = _load(b, b.add(table, b.mul(tap, _INT(_ITEM))), ir.IntType(32))
    return b.add(address, b.sext(away, _INT))


def _everywhere(b: Any, value: Any) -> Any:
    """Fill a vector with a number."""
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = b.insert_element(nothing, value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return b.shuffle_vector(one, nothing, zeros)


def _multiply_add(b: Any, x: Any, y: Any, total: Any) -> Any:
    return b.fadd(b.fmul(x, y, flags=("contract",)), total, flags=("contract",))


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
                    places = map(b.add, own, _pair(b, table, i))
                    at, weights = places
                    some = [
                        _load(b, b.add(at, _INT(_ITEM * LANES * v)), _VECTOR)
                        for v in range(vectors)
                    ]
                    found = []
                    for row in range(BLOCK):
                        factor = _load(b, b.add(weights, _INT(_ITEM * row)), _FLOAT)
                        factor = _everywhere(b, factor)
                        for v in range(vectors):
                            total = sums[row * vectors + v]
                            found.append(_multiply_add(b, some[v], factor, total))
                    return found

                return _loop(b, count, sums, tap)

            starts = [
                _everywhere(b, _load(b, b.add(bias, _INT(_ITEM * row)), _FLOAT))
                for row in range(BLOCK)
            ]
            sums = _loop(b, channels, [one for one in starts for _ in range(vectors)], channel)
            cut = b.icmp_signed("!=", relu, _INT(0))
            for place, whole in enumerate(sums):
                below = b.select(b.fcmp_ordered("<", whole, _ZEROS), _ZEROS, whole)
                total = b.select(cut, below, whole)
                row, v = divmod(place, vectors)
                at = b.add(out, b.mul(_INT(row), out_stride))
                _store(b, total, b.add(at, _INT(_ITEM * LANES * v)))
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
                starts = list(map(b.add, (left, right), _pair(b, table, i)))

                def lanes(v: Any, sums: Values) -> Values:
                    at = [b.add(start, b.mul(v, _INT(_ITEM * LANES))) for start in starts]
                    some, others = (
                        [
                            _load(b, b.add(place, b.mul(_INT(k), stride)), _VECTOR)
                            for k in range(number)
                        ]
                        for place, stride, number in zip(
                            at, (left_stride, right_stride), (rows, columns), strict=True
                        )
                    )
                    both = [(one, other) for one in some for other in others]
                    return [
                        _multiply_add(b, *factors, total)
                        for factors, total in zip(both, sums, strict=True)
                    ]

                return _loop(b, vectors, sums, lanes)

            sums = _loop(b, count, [_ZEROS] * (rows * columns), pair)
            kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            reduce = cgutils.get_or_insert_function(b.module, kind, name)
            for place, total in enumerate(sums):
                value = b.call(reduce, [ir.Constant(_FLOAT, 0.0), total], fastmath=("reassoc",))
                _store(b, value, b.add(out, _INT(_ITEM * place)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return intrinsic(typed)


def _largest() -> Any:
    """Of one window: the largest entries of its places, and which tap each is at, or -1.

    Arguments are addresses, and a table of bytes to each of so many taps.
    """

    def typed(  # noqa: PLR0917
        context: Any,
        x: Any,
        table: Any,
        taps: Any,
        vectors: Any,
        out: Any,
        which: Any,
        relu: Any,
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            x, table, taps, vectors, out, which, relu = arguments
            cut = b.icmp_signed("!=", relu, _INT(0))

            def lanes(v: Any, _: Values) -> Values:
                at = b.mul(v, _INT(_ITEM * LANES))
                here = b.add(x, at)

                def tap(i: Any, found: Values) -> Values:
                    value, (most, place) = _load(b, _tap(b, here, table, i), _VECTOR), found
                    above = b.fcmp_unordered(">", value, most)
                    more = b.and_(above, b.fcmp_ordered("==", most, most))
                    number = _everywhere(b, b.trunc(i, ir.IntType(32)))
                    return b.select(more, value, most), b.select(more, number, place)

                first = ir.Constant(_PLACES, [0] * LANES)
                most, place = _loop(b, taps, [_load(b, here, _VECTOR), first], tap)
                none = b.and_(b.fcmp_ordered("<=", most, _ZEROS), _everywhere(b, cut))
                _store(b, b.select(none, _ZEROS, most), b.add(out, at))
                nowhere = ir.Constant(_PLACES, [-1] * LANES)
                _store(b, b.select(none, nowhere, place), b.add(which, at))
                return ()

            _loop(b, vectors, (), lanes)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return intrinsic(typed)


def _given_back() -> Any:
    """Of one window: its gradient at the taps that were taken, and zeros at the others."""

    def typed(  # noqa: PLR0917
        context: Any, gradient: Any, which: Any, table: Any, taps: Any, vectors: Any, out: Any
    ) -> Any:
        def generate(context: Any, b: Any, _: Any, arguments: Any) -> Any:
            gradient, which, table, taps, vectors, out = arguments

            def lanes(v: Any, _: Values) -> Values:
                at = b.mul(v, _INT(_ITEM * LANES))
                given = _load(b, b.add(gradient, at), _VECTOR)
                place = _load(b, b.add(which, at), _PLACES)

                def tap(i: Any, _: Values) -> Values:
                    number = _everywhere(b, b.trunc(i, ir.IntType(32)))
                    taken = b.icmp_signed("==", place, number)
                    value = b.select(taken, given, _ZEROS)
                    _store(b, value, _tap(b, b.add(out, at), table, i))
                    return ()

                _loop(b, taps, (), tap)
                return ()

            _loop(b, vectors, (), lanes)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return intrinsic(typed)


_at_most, _at_two, _at_one = (_correlation(vectors) for vectors in (_MOST, 2, 1))
_block, _column, _entry = (
    _inner_products(*shape) for shape in ((BLOCK, BLOCK), (BLOCK, 1), (1, 1))
)
_most_of_window, _to_window = _largest(), _given_back()


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


@njit(nogil=True)
def pool(  # noqa: PLR0917
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    height: int,
    width: int,
    table: NDArray[np.int32],
    relu: bool,
) -> None:  # pragma: no cover - compiled
    """Take the largest (the first of equal ones, or a NaN) of windows of x [N, H, W, B].

    B is a multiple of :data:`LANES`; ``table`` has the bytes from a window's first place to each.
    Where a ReLU leaves nothing of it, -1 is noted.
    """
    rows, columns, batch = out.shape[1:]
    for n in range(len(out)):
        for i in range(rows):
            for j in range(columns):
                at = ((n * x.shape[1] + i * height) * x.shape[2] + j * width) * batch
                to = ((n * rows + i) * columns + j) * batch
                _most_of_window(
                    *(x.ctypes.data + 4 * at, table.ctypes.data, len(table), batch // LANES),
                    *(out.ctypes.data + 4 * to, which.ctypes.data + 4 * to, int(relu)),
                )


@njit(nogil=True)
def unpool(  # noqa: PLR0917
    gradient: NDArray[np.float32],
    which: NDArray[np.int32],
    out: NDArray[np.float32],
    height: int,
    width: int,
    table: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Give the gradient of each window to the place whose entry was taken, and 0 to the others."""
    rows, columns, batch = gradient.shape[1:]
    for n in range(len(gradient)):
        for i in range(rows):
            for j in range(columns):
                at = ((n * rows + i) * columns + j) * batch
                to = ((n * out.shape[1] + i * height) * out.shape[2] + j * width) * batch
                _to_window(
                    *(gradient.ctypes.data + 4 * at, which.ctypes.data + 4 * at),
                    *(table.ctypes.data, len(table), batch // LANES, out.ctypes.data + 4 * to),
                )

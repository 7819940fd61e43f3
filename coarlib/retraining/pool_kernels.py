"""Compiled max pools of images with the batch last; imported where used, as numba takes a while."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.retraining.vectors import (
    INT,
    ITEM,
    LANES,
    PLACES,
    VECTOR,
    ZEROS,
    Values,
    everywhere,
    load,
    loop,
    store,
    tap_address,
)

__all__ = ["pool", "unpool"]


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
            cut = b.icmp_signed("!=", relu, INT(0))

            def lanes(v: Any, _: Values) -> Values:
                at = b.mul(v, INT(ITEM * LANES))
                here = b.add(x, at)

                def tap(i: Any, found: Values) -> Values:
                    value, (most, place) = load(b, tap_address(b, here, table, i), VECTOR), found
                    more = b.fcmp_ordered(">", value, most)
                    more = b.or_(more, b.fcmp_unordered("!=", value, value))  # NaN
                    number = everywhere(b, b.trunc(i, ir.IntType(32)))
                    return b.select(more, value, most), b.select(more, number, place)

                first = ir.Constant(PLACES, [0] * LANES)
                most, place = loop(b, taps, [load(b, here, VECTOR), first], tap)
                none = b.and_(b.fcmp_ordered("<=", most, ZEROS), everywhere(b, cut))
                store(b, b.select(none, ZEROS, most), b.add(out, at))
                nowhere = ir.Constant(PLACES, [-1] * LANES)
                store(b, b.select(none, nowhere, place), b.add(which, at))
                return ()

            loop(b, vectors, (), lanes)
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
                at = b.mul(v, INT(ITEM * LANES))
                given = load(b, b.add(gradient, at), VECTOR)
                place = load(b, b.add(which, at), PLACES)

                def tap(i: Any, _: Values) -> Values:
                    number = everywhere(b, b.trunc(i, ir.IntType(32)))
                    taken = b.icmp_signed("==", place, number)
                    value = b.select(taken, given, ZEROS)
                    store(b, value, tap_address(b, b.add(out, at), table, i))
                    return ()

                loop(b, taps, (), tap)
                return ()

            loop(b, vectors, (), lanes)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return intrinsic(typed)


_most_of_window, _to_window = _largest(), _given_back()


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
    """Take the largest of windows of x [N, H, W, B]: the first of equal ones, the last of NaNs.

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

"""What compiled loops over vectors of examples are written with, in LLVM's own terms.

Numba alone would not keep accumulators in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir

__all__ = [
    "FLOAT",
    "INT",
    "ITEM",
    "LANES",
    "PLACES",
    "VECTOR",
    "WIDE",
    "ZEROS",
    "Values",
    "everywhere",
    "load",
    "loop",
    "multiply_add",
    "store",
    "table_pair",
    "tap_address",
    "totals",
]

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if WIDE else 8  # numbers in a vector
ITEM = 4  # bytes of a float32, and of a table's int32
INT, FLOAT = ir.IntType(64), ir.FloatType()
VECTOR, PLACES = (ir.VectorType(kind, LANES) for kind in (FLOAT, ir.IntType(32)))
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
Values = Sequence[Any]


def loop(b: Any, count: Any, carried: Values, body: Callable[[Any, Values], Values]) -> Values:
    """Emit ``for i in range(count): carried = body(i, carried)``."""
    before = b.block
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    index, *values = (b.phi(start.type) for start in (INT(0), *carried))
    for phi, start in zip((index, *values), (INT(0), *carried), strict=True):
        phi.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    found = body(index, values)
    for phi, value in zip((index, *values), (b.add(index, INT(1)), *found), strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return values


def load(b: Any, address: Any, kind: Any) -> Any:
    """Load a number or vector from an address."""
    return b.load(b.inttoptr(address, kind.as_pointer()), align=ITEM)


def store(b: Any, value: Any, address: Any) -> None:
    """Store a number or vector at an address."""
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=ITEM)


def table_pair(b: Any, table: Any, row: Any) -> tuple[Any, Any]:
    """Load a row of an int32 table [n, 2]."""
    first = b.add(table, b.mul(row, INT(2 * ITEM)))
    both = (load(b, place, ir.IntType(32)) for place in (first, b.add(first, INT(ITEM))))
    one, other = (b.sext(value, INT) for value in both)
    return one, other


def tap_address(b: Any, address: Any, table: Any, tap: Any) -> Any:
    """Return where a tap is, by an int32 table of bytes."""
    away = load(b, b.add(table, b.mul(tap, INT(ITEM))), ir.IntType(32))
    return b.add(address, b.sext(away, INT))


def everywhere(b: Any, value: Any) -> Any:
    """Fill a vector with a number."""
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = b.insert_element(nothing, value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return b.shuffle_vector(one, nothing, zeros)


def multiply_add(b: Any, x: Any, y: Any, total: Any) -> Any:
    """Return ``x y + total``, fused where the processor can."""
    return b.fadd(b.fmul(x, y, flags=("contract",)), total, flags=("contract",))


def totals(b: Any, vectors: Values) -> Values:
    """Sum the lanes of each vector: half of two beside half of two, until all are in one lane."""
    place, found, width = ir.IntType(32), list(vectors), LANES
    while width > 1:
        width //= 2
        first = [lane for lane in range(2 * LANES) if lane % (2 * width) < width]
        halves = [
            ir.Constant(ir.VectorType(place, LANES), [lane + shift for lane in first])
            for shift in (0, width)
        ]
        pairs = zip(found[::2], [*found[1::2], found[-1]], strict=False)
        found = [b.fadd(*(b.shuffle_vector(*pair, half) for half in halves)) for pair in pairs]
    return [b.extract_element(found[k // LANES], place(k % LANES)) for k in range(len(vectors))]

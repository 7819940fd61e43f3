"""Which rows a worker takes next, and how many at once: the rules, without any file.

Rows are cut into blocks of one size, and blocks into *pieces*: a piece begins at its block's first
row or at a claimed row, and ends where the next begins. A worker that finds nothing free claims a
row in the middle of a living worker's piece, which cuts it in two; the other sees before its next
rows that it lost the rest. So pieces shrink geometrically towards the end, and the slowest keep
the least. A last row that stands still for longer than its observer would need is done twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Blocks that are looked at for a free piece before one is cut.
LOOKS = 8
# A row is done twice if nothing came of it in so many times what the observer needs for it.
PATIENCE = 2.0
# Rows that a worker may do twice so: one, and this share of those it wrote.
MOST_DOUBLED = 0.02
# Rows in hand must be done within this share of the time that the whole store still needs.
SHARE_OF_REST = 0.25
# Blocks that a worker looks at when it has found nothing again and again.
MOST_LOOKS = 32
# Rows that take less than this together are not worth cutting or doubling.
LEAST_SECONDS = 1.0
# A call of half the rows that takes more than this share of the time saves nothing.
SAVED_NOTHING = 0.7


@dataclass(frozen=True)
class Claim:
    """One claim: the piece that begins at ``row``, taken for the ``generation``-th time."""

    row: int
    generation: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.row}.{self.generation}"


@dataclass(frozen=True)
class Piece:
    """Open rows (int64, ascending) from ``start`` on, and who has them."""

    start: int
    rows: NDArray[np.int64]
    owner: Claim | None

    def next_claim(self) -> Claim:
        """Return the claim that takes the whole piece."""
        return Claim(self.start, 0 if self.owner is None else self.owner.generation + 1)

    def cut(self, in_hand: int) -> Claim | None:
        """Return the claim that takes the second half; None if all may be in its owner's hand."""
        place = max(len(self.rows) // 2, in_hand)
        return Claim(int(self.rows[place]), 0) if place < len(self.rows) else None


def pieces(
    first_row: int, open_rows: NDArray[np.int64], owners: Mapping[int, Claim]
) -> list[Piece]:
    """Return the pieces of a block that have open rows, the largest first.

    Parameters
    ----------
    first_row : int
        Of the block.
    open_rows : int64 [K]
        Of the block, ascending.
    owners : mapping of row to Claim
        Every claimed row of the block with its claim of the highest generation.
    """
    starts = sorted({first_row, *owners})
    edges = [*np.searchsorted(open_rows, starts).tolist(), len(open_rows)]
    found = [
        Piece(start, open_rows[low:high], owners.get(start))
        for start, (low, high) in zip(starts, pairwise(edges), strict=True)
        if high > low
    ]
    return sorted(found, key=lambda piece: -len(piece.rows))


def still_mine(rows: NDArray[np.int64], own: Claim, claims: Iterable[Claim]) -> NDArray[np.int64]:
    """Return what is left of a piece's ``rows`` to the owner of ``own``: what no other claimed."""
    end = np.iinfo(np.int64).max
    for claim in claims:
        if claim.row > own.row:
            end = min(end, claim.row)
        elif claim.row == own.row and claim.generation > own.generation:
            return rows[:0]
    return rows[: int(np.searchsorted(rows, end))]


def order(counts: NDArray[np.int64], taste: NDArray[np.float64], looks: int) -> NDArray[np.int64]:
    """Return which blocks to look at: those with the most open rows, ties by the own taste.

    Parameters
    ----------
    counts : int64 [B]
        Open rows of each block.
    taste : float64 [B]
        In [0, 1), drawn once by each worker: it keeps a thousand of them from queueing at one
        block, and lets each come back to those that it has watched.
    looks : int
        How many at most.
    """
    return np.argsort(-counts * (1 + taste))[:looks]


class Pace:
    """How many rows one worker computes at once: a batch, and fewer towards the end.

    Everything is measured on the worker's own clock: what it needs for a row, and how fast the
    open rows of the store become fewer.
    """

    def __init__(self, batch: int) -> None:
        self.row_seconds: float | None = None
        self._batch, self._least = batch, 1
        self._last: tuple[int, float] | None = None
        self._looks: deque[tuple[float, int]] = deque(maxlen=8)

    def saw(self, moment: float, open_rows: int) -> None:
        """Note how many rows of the store were open at a moment of the own clock."""
        self._looks.append((moment, open_rows))

    def did(self, rows: int, seconds: float) -> None:
        """Note how long so many rows took; the first call is often slower than all others."""
        if self.row_seconds is not None:
            (few, short), (many, long) = sorted([(rows, seconds), self._last or (rows, seconds)])
            if many >= 2 * few and short > SAVED_NOTHING * long:
                self._least = max(self._least, many)  # many rows at once cost what few do
            self._last = (rows, seconds)
        self.row_seconds = seconds / rows

    def seconds_left(self) -> float | None:
        """Seconds until no row of the store is open, as far as can be told."""
        if len(self._looks) < 2:
            return None
        (then, before), (now, left) = self._looks[0], self._looks[-1]
        return (now - then) * left / (before - left) if before > left else None

    def rows(self) -> int:
        """Rows to compute next; one at first, to learn how long it takes."""
        if self.row_seconds is None:
            return 1
        left = self.seconds_left()
        if left is None or not self.row_seconds:
            return self._batch
        fitting = max(SHARE_OF_REST * left, LEAST_SECONDS) / self.row_seconds
        return int(min(max(fitting, self._least), self._batch))

    def in_hand(self, waited: bool) -> int:
        """Return how many rows another worker may have in hand; one that waited long risks more."""
        return self._batch if self.row_seconds is None and not waited else self.rows()

    def patience(self) -> float:
        """Seconds for which another's rows in hand may stand still before they are doubled."""
        if self.row_seconds is None:
            return float("inf")
        return max(PATIENCE * self.row_seconds * self.rows(), LEAST_SECONDS)

"""Memory of batches, used again once nobody holds the batch any more."""

from __future__ import annotations

import sys

import numpy as np

from coarlib.beton.arrays import empty_rows
from coarlib.beton.fields import Field

KEPT = 3  # a loop holds the last batch while the next is made


class Buffers:
    """Arrays for rows of one field, whose memory comes back when the last reference is gone.

    A fresh array of tens of megabytes costs as much in page faults as filling it. Unlike a ring of
    buffers this never changes an array that someone still holds: a buffer is free when only this
    pool refers to it, which the interpreter's reference count tells.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._pool: list[np.ndarray] = []
        self._idle = _references([empty_rows(field, 0)], 0)

    def rows(self, count: int) -> np.ndarray:
        """Return an uninitialised array for ``count`` rows."""
        for place, buffer_rows in enumerate(map(len, self._pool)):
            if buffer_rows >= count and _references(self._pool, place) == self._idle:
                return self._pool[place][:count]
        buffer = empty_rows(self._field, count)
        self._pool = [*self._pool[1 - KEPT :], buffer]
        return buffer[:]


def _references(pool: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(pool[place])

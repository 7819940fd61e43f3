"""One worker among many: rows by claims, a batch at a time, until no row of the store is open."""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarlib.filling.stopping import StopSignals
from coarlib.progress import Progress
from coarlib.store import Store
from coarlib.store.claims import Claims, settle_block_rows
from coarlib.store.pieces import Pace

# How often a worker that has nothing left to claim looks again: within these seconds, and twice
# in the time that a row takes it.
LEAST_SECONDS_BETWEEN_LOOKS, MOST_SECONDS_BETWEEN_LOOKS = 0.2, 30.0

# How often one that has rows counts those of the store that are left.
SECONDS_BETWEEN_COUNTS = 10.0


def seconds_between_looks(row_seconds: float | None, ttl: float) -> float:
    """Return how long a worker without rows waits before it looks again."""
    wanted = 0.0 if row_seconds is None else row_seconds / 2
    most = min(MOST_SECONDS_BETWEEN_LOOKS, ttl / 6)
    return min(max(wanted, LEAST_SECONDS_BETWEEN_LOOKS), most)


@dataclass
class ClaimedBatches:
    """The batches of one worker; ``refused`` rows are not tried again.

    Parameters
    ----------
    store : Store
    size : int
        Rows of a full batch.
    ttl : float
        Of :class:`coarlib.store.claims.Claims`.
    wait : bool
        Whether to wait at the end for rows of other workers.
    refused : list of int
        Filled by the caller as it goes.
    """

    store: Store
    size: int
    ttl: float
    wait: bool
    refused: list[int]
    taken_over: int = 0

    def batches(
        self, rows: NDArray[np.int64], stop: StopSignals, progress: Progress
    ) -> Generator[NDArray[np.int64], None, None]:
        """Yield rows to compute now, until none of ``rows`` is open or a stop is requested."""
        pace = Pace(self.size)
        block_rows = settle_block_rows(self.store, self.size)
        with Claims(self.store, block_rows, self.ttl, pace) as claims:
            while not stop.requested:
                rows = self._open(rows, pace)
                progress.reach(progress.total - len(rows))
                wanted = rows[~np.isin(rows, self.refused)]  # to try again changes nothing
                if not len(wanted):
                    return
                mine = claims.next_rows(wanted)
                self.taken_over = claims.taken_over
                if mine is not None:
                    yield from self._piece(mine, rows, claims, stop)
                    claims.finish()
                elif not self.wait:
                    return
                else:
                    pause = seconds_between_looks(pace.row_seconds, self.ttl)
                    stop.wait(pause * random.uniform(0.5, 1.0))

    def _open(self, rows: NDArray[np.int64], pace: Pace) -> NDArray[np.int64]:
        rows = rows[~self.store.completed_among(rows)]
        pace.saw(time.monotonic(), len(rows))
        return rows

    def _piece(
        self, mine: NDArray[np.int64], wanted: NDArray[np.int64], claims: Claims, stop: StopSignals
    ) -> Generator[NDArray[np.int64], None, None]:
        """Yield the batches of a piece; before each, leave out what others took of it."""
        looked = time.monotonic()
        while len(mine) and not stop.requested:
            batch, mine = np.split(mine, [claims.pace.rows()])
            began = time.monotonic()
            yield batch
            now = time.monotonic()
            claims.pace.did(len(batch), now - began)
            claims.written += len(batch)
            mine = claims.still_mine(mine)
            if now - looked > SECONDS_BETWEEN_COUNTS:
                looked, wanted = now, self._open(wanted, claims.pace)

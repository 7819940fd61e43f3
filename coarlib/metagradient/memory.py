"""How much memory differentiating a run takes, known before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from coarlib.devices import free_bytes
from coarlib.errors import HistoryError
from coarlib.history import RecordedRun
from coarlib.history.memory import MemoryHistory
from coarlib.history.queries import Queries

COPIES = 8
"""Tensors of the parameters' size that a sweep holds an output: λ, what enters and what leaves."""
PASSES = 3
"""What forward mode over a backward pass holds an output, in forward passes of its samples."""
SAMPLES = 64
"""So many of a batch go together at the least."""


@dataclass(frozen=True)
class Forecast:
    """Bytes that a sweep takes, about.

    Attributes
    ----------
    states : int
        Of the recorded run, in memory.
    point : int
        Of all outputs of one test point.
    at_once : int
        Test points that go together.
    samples : int
        Samples of a batch that go together.
    """

    states: int
    point: int
    at_once: int
    samples: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.states + self.point * self.at_once

    def __str__(self) -> str:
        return (
            f"{_size(self.total)} of memory: {_size(self.states)} of states, "
            f"{self.at_once} test points at once of {_size(self.point)} each"
        )


def forecast(run: RecordedRun, queries: Queries, memory: int, most: int) -> Forecast:
    """Forecast a sweep, and how many test points and samples go together.

    Parameters
    ----------
    run : RecordedRun
    queries : Queries
    memory : int
        Bytes that the test points may take together.
    most : int
        Test points that there are.

    Raises
    ------
    HistoryError
        If even one test point at a time needs more than is free.
    """
    walk, settings = run.walk, run.walk.history.settings
    size = walk.dtype.itemsize
    parts = 3 if settings.kind.adaptive else 2
    updates = len(walk.numbers)
    held = min(settings.every, updates) + 2
    if isinstance(walk.history, MemoryHistory):
        held += updates // settings.every + 2
    states = held * parts * settings.table.total * size
    outputs, batch = queries.num_outputs, settings.max_batch
    sample = outputs * PASSES * queries.bytes_of_another(walk.theta(walk.history.first))
    kept, fewest = outputs * COPIES * settings.table.total * size, min(batch, SAMPLES)
    at_once = max(1, min(most, memory // (kept + fewest * sample)))
    samples = max(fewest, min(batch, (memory // at_once - kept) // sample))
    point = kept + samples * sample
    found = Forecast(states, point, at_once, samples)
    free = free_bytes(walk.device)
    if states + point > free:
        raise HistoryError(
            f"derivatives of one test point need about {_size(states + point)} of memory, "
            f"{_size(states)} of it for the states of the run, and {_size(free)} are free; "
            "record with fewer states (every), train in smaller batches or use a larger machine"
        )
    return found


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

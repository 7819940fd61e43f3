"""Which rows are fitted and which are held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.rows import RowSource

__all__ = ["Split", "split_rows"]


@dataclass(frozen=True)
class Split:
    """The rows to fit and to hold out, ascending int64: positions in a source, or row numbers."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    def row_ids(self, source: RowSource) -> Split:
        """Return positions as the numbers that the rows have in their source."""
        return Split(source.row_ids[self.train], source.row_ids[self.validation])

    def positions(self, source: RowSource) -> Split | None:
        """Return row numbers as positions in a source; None where it lacks one of them."""
        known = source.row_ids
        if not all(np.isin(part, known).all() for part in (self.train, self.validation)):
            return None
        return Split(np.searchsorted(known, self.train), np.searchsorted(known, self.validation))


def split_rows(source: RowSource, num_train: int, num_val: int, seed: int | None = None) -> Split:
    """Choose the rows to fit and to hold out.

    Parameters
    ----------
    source : RowSource
    num_train, num_val : int
        The first ``num_train`` completed rows, and the ``num_val`` after them.
    seed : int, optional
        Shuffles which of those ``num_train + num_val`` rows are held out.

    Raises
    ------
    RegressionError
        If there are fewer completed rows, or no row to fit.
    """
    if seed is not None and seed < 0:
        raise RegressionError(f"the seed of the split must be at least 0, not {seed}")
    available, wanted = len(source.row_ids), num_train + num_val
    if not available:
        raise RegressionError(f"no row of {source.description} is completed: nothing to fit yet")
    if num_train < 1 or num_val < 0:
        raise RegressionError(
            f"num_train must be at least 1 and num_val at least 0, not {num_train} and {num_val} "
            f"({source.description} has {available} completed rows)"
        )
    if available < wanted:
        raise RegressionError(
            f"{source.description} has {available} completed rows, but num_train + num_val = "
            f"{num_train} + {num_val} = {wanted} are asked for; fill the missing rows or lower one "
            "of the two"
        )
    order = np.arange(wanted, dtype=np.int64)
    if seed is not None:
        order = np.random.Generator(np.random.Philox(seed)).permutation(order)
    return Split(np.sort(order[:num_train]), np.sort(order[num_train:]))

"""The held-out correlation of the rows that a store holds so far, while it is being filled."""

from __future__ import annotations

import numpy as np

from coarlib.errors import CoarlibError
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.rows import StoreRows
from coarlib.regression.solvers import Ridge
from coarlib.regression.split import Split
from coarlib.store import Store

__all__ = ["CorrelationSoFar"]

FEWEST_ROWS = 100
MOST_WORK = 2e10  # rows × features × targets of a fit that does not hold the worker up
GROWTH = 2.0


class CorrelationSoFar:
    """Fits ridge to the completed rows each time that they have doubled.

    Parameters
    ----------
    store : Store
        Of masks and outputs; of anything else nothing is said.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._next = store, float(FEWEST_ROWS)

    def __call__(self) -> dict[str, float]:
        """Return rows so far and, where it is new and quick, the correlation with its interval."""
        done = self._store.completed_rows()
        numbers = {"rows": float(len(done))}
        if len(done) < self._next:
            return numbers
        self._next = GROWTH * len(done)
        try:
            source = StoreRows(self._store)
            if len(done) * source.num_features * source.num_targets > MOST_WORK:
                return numbers
            rows = np.arange(len(source.row_ids))
            held = len(rows) // 5
            split = Split(rows[:-held], rows[-held:])
            how = FitOptions(quiet=True, say=lambda _: None, with_curve=False)
            scored = fit_and_score(source, split, Ridge(), how).held_out
        except CoarlibError:
            return numbers
        if scored is None or not np.isfinite(scored.mean):
            return numbers
        found = {"correlation": scored.mean, "low": scored.mean_low, "high": scored.mean_high}
        return numbers | {k: float(v) for k, v in found.items() if np.isfinite(v)}

"""How many rows are enough: the held-out correlation at growing row counts, and beyond.

The rows are summed in nested pieces, so that all points of the curve cost one pass. What follows
the last point comes from :mod:`coarlib.regression.extrapolation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.extrapolation import extrapolate
from coarlib.regression.heldout import score_rows
from coarlib.regression.moments import Moments
from coarlib.regression.problems import problem_of, solve
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers import Solver, solver_of
from coarlib.statistics.intervals import draws

__all__ = ["LearningCurve", "learning_curve"]

POINTS = 6
DRAWS = 400
Z = 1.96
SMALLEST_ROWS = 16


@dataclass(frozen=True)
class LearningCurve:
    """Held-out correlation against the number of rows fitted.

    Attributes
    ----------
    rows : int64 [P]
    correlation, low, high : float64 [P]
        Mean held-out Pearson correlation with its 95% interval.
    wanted : int64 [Q]
        More rows.
    predicted : float64 [Q]
        The correlation they are expected to bring; never below the last measured one, NaN where
        the points say nothing about it.
    gain_sd : float64 [Q]
        Standard deviation of ``predicted - correlation[-1]``.
    sd : float64 [Q]
        Of ``predicted``: that of the gain, and that of the last point for want of held-out rows.
    solver : str
    """

    rows: NDArray[np.int64]
    correlation: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    wanted: NDArray[np.int64]
    predicted: NDArray[np.float64]
    gain_sd: NDArray[np.float64]
    sd: NDArray[np.float64]
    solver: str

    @property
    def low_ahead(self) -> NDArray[np.float64]:
        """Lower end of the 95% interval of each prediction, float64 [Q]."""
        return np.maximum(self.predicted - Z * self.sd, -1)

    @property
    def high_ahead(self) -> NDArray[np.float64]:
        """Upper end of the 95% interval of each prediction, float64 [Q]."""
        return np.minimum(self.predicted + Z * self.sd, 1)

    def __str__(self) -> str:
        solver = self.solver.replace("_", " ")
        now = f"the correlation of {solver} is {self.correlation[-1]:.3f}"
        if len(self.wanted) == 0:
            return f"{now}; too few rows for an extrapolation"
        ahead, gain = self.wanted[0], self.predicted[0] - self.correlation[-1]
        if np.isnan(gain):
            return f"{now}; what doubling the rows to {ahead:,} would bring is unclear"
        most = min(self.correlation[-1] + gain + Z * self.gain_sd[0], 1)
        if Z * self.gain_sd[0] > gain:
            return (
                f"{now}; what doubling the rows to {ahead:,} would bring is unclear: probably no "
                f"more than {most:.3f}"
            )
        return (
            f"doubling the rows to {ahead:,} is predicted to raise the correlation of {solver} "
            f"from {self.correlation[-1]:.3f} to {self.predicted[0]:.3f} ± {Z * self.sd[0]:.3f}"
        )

    def table(self) -> str:
        """Return the curve as lines for people."""
        lines = [f"{'rows':>10}  held-out correlation [95%]"]
        for n, r, low, high in zip(self.rows, self.correlation, self.low, self.high, strict=True):
            lines.append(f"{n:>10}  {r:.3f} [{low:.3f}, {high:.3f}]")
        ahead = zip(self.wanted, self.predicted, self.low_ahead, self.high_ahead, strict=True)
        for n, r, low, high in ahead:
            said = "unclear" if np.isnan(r) else f"{r:.3f} [{low:.3f}, {high:.3f}] (predicted)"
            lines.append(f"{n:>10}  {said}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        names = ("rows", "correlation", "low", "high", "wanted", "predicted", "gain_sd", "sd")
        return {"solver": self.solver} | {name: getattr(self, name).tolist() for name in names}


def learning_curve(
    source: RowSource,
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    solver: str | Solver = "ridge",
    points: int = POINTS,
    multiples: Sequence[int] = (2, 4),
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> LearningCurve:
    """Measure the learning curve of a data set and extrapolate it.

    Parameters
    ----------
    source : RowSource
    train, held_out : int64
        Positions of the rows to fit (nested prefixes of them) and to score on.
    solver : str or Solver
        One that chooses λ by held-out rows has half of them for it; the others score.
    points : int
        Row counts, halving from all of them.
    multiples : sequence of int
        Extrapolate to so many times the rows.

    Raises
    ------
    RegressionError
        If there is no point, or there are fewer than 32 rows to fit, or fewer than 2 to score on.
    """
    if points < 1:
        raise RegressionError(f"a learning curve has at least one point, not {points}")
    if len(train) < 2 * SMALLEST_ROWS or len(held_out) < 2:
        raise RegressionError(
            f"a learning curve needs at least {2 * SMALLEST_ROWS} rows to fit and 2 to score on, "
            f"not {len(train)} and {len(held_out)}"
        )
    solver = solver_of(solver)
    sizes = [len(train) >> step for step in range(points)][::-1]
    sizes = [size for size in sizes if size >= SMALLEST_ROWS]
    validation = None
    if "validation" in solver.needs:
        cut = len(held_out) // 2
        validation = Moments.from_rows(source, held_out[:cut], device=device, quiet=quiet)
        held_out = held_out[cut:]
    total: Moments | None = None
    scores = []
    start = 0
    for size in sizes:
        piece = Moments.from_rows(source, train[start:size], device=device, quiet=quiet)
        total = piece if total is None else total + piece
        problem = problem_of(total, (source, train[:size]), device=device, validation=validation)
        scores.append(score_rows(solve(solver, problem).predict, source, held_out))
        start = size
    rows = np.array(sizes, np.int64)
    wanted = rows[-1] * np.array(multiples, np.int64)
    mean = np.array([score.mean for score in scores])
    low, high = (np.array([getattr(s, key) for s in scores]) for key in ("mean_low", "mean_high"))
    replicas = draws(mean, np.stack([score.influence for score in scores]), DRAWS)
    features = int((~total.constant_features).sum()) if total is not None else 0
    ahead = extrapolate(rows, mean, replicas, wanted, features=features, shrinks=solver.shrinks)
    return LearningCurve(rows, mean, low, high, wanted[: len(ahead[0])], *ahead, solver.name)

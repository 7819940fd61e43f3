"""How many rows are enough: the held-out correlation at growing row counts, and beyond.

The rows are summed in nested pieces, so that all points of the curve cost one pass. The curve
``r(n) = c - a n^(-b)`` is fitted to the points; its uncertainty is that of the held-out rows
(bootstrap: the same resample at every point) and of the form itself (how far it misses the last
point when fitted to the earlier ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.heldout import score_rows
from coarlib.regression.moments import Moments
from coarlib.regression.problems import problem_of, solve
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers import Solver, solver_of

__all__ = ["LearningCurve", "extrapolate", "learning_curve"]

POINTS = 6
SMALLEST_ROWS = 16
EXPONENTS = np.linspace(0.1, 1.5, 29)


@dataclass(frozen=True)
class LearningCurve:
    """Held-out correlation against the number of rows fitted.

    Attributes
    ----------
    rows : int64 [P]
    correlation, low, high : float64 [P]
        Mean held-out Pearson correlation with its 95% interval.
    wanted : int64 [Q], predicted, sd : float64 [Q]
        Extrapolation to more rows.
    solver : str
    """

    rows: NDArray[np.int64]
    correlation: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    wanted: NDArray[np.int64]
    predicted: NDArray[np.float64]
    sd: NDArray[np.float64]
    solver: str

    def __str__(self) -> str:
        if len(self.wanted) == 0:
            return "too few rows for an extrapolation"
        return (
            f"doubling the rows to {self.wanted[0]} is predicted to raise the correlation of "
            f"{self.solver} from {self.correlation[-1]:.3f} to {self.predicted[0]:.3f} "
            f"± {self.sd[0]:.3f}"
        )

    def table(self) -> str:
        """Return the curve as lines for people."""
        lines = [f"{'rows':>10}  held-out correlation [95%]"]
        for n, r, low, high in zip(self.rows, self.correlation, self.low, self.high, strict=True):
            lines.append(f"{n:>10}  {r:.3f} [{low:.3f}, {high:.3f}]")
        for n, r, sd in zip(self.wanted, self.predicted, self.sd, strict=True):
            lines.append(f"{n:>10}  {r:.3f} ± {sd:.3f} (predicted)")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        names = ("rows", "correlation", "low", "high", "wanted", "predicted", "sd")
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
    predicted, sd = extrapolate(rows, mean, np.stack([s.replicas for s in scores]), wanted)
    low, high = (np.array([getattr(s, key) for s in scores]) for key in ("mean_low", "mean_high"))
    if np.isnan(predicted).all():
        wanted, predicted, sd = wanted[:0], predicted[:0], sd[:0]
    return LearningCurve(rows, mean, low, high, wanted, predicted, sd, solver.name)


def extrapolate(
    rows: NDArray[np.int64],
    correlation: NDArray[np.float64],
    replicas: NDArray[np.float64],
    wanted: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Extrapolate a learning curve with a standard deviation.

    Parameters
    ----------
    rows : int64 [P], correlation : float64 [P]
    replicas : float64 [P, R]
        Bootstrap replicas of ``correlation``.
    wanted : int64 [Q]

    Returns
    -------
    predicted, sd : float64 [Q]; NaN with fewer than three points, or without replicas.
    """
    if len(rows) < 3 or not replicas.size:
        return np.full(len(wanted), np.nan), np.full(len(wanted), np.nan)
    predicted = _fit_and_predict(rows, correlation, wanted)
    drawn = np.stack([_fit_and_predict(rows, replica, wanted) for replica in replicas.T])
    sampling = np.nanstd(drawn, axis=0)
    # How wrong the form was at the last doubling, growing with the number of doublings ahead.
    missed = correlation[-1] - correlation[-2]
    if len(rows) > 3:
        missed = correlation[-1] - float(
            _fit_and_predict(rows[:-1], correlation[:-1], rows[-1:])[0]
        )
    doublings = np.log2(wanted / rows[-1])
    return predicted, np.sqrt(sampling**2 + (missed * doublings) ** 2)


def _fit_and_predict(
    rows: NDArray[np.int64], values: NDArray[np.float64], wanted: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Fit c - a n^(-b), a ≥ 0, by least squares over a grid of b; values in [-1, 1]."""
    best, result = np.inf, np.full(len(wanted), np.nan)
    n = rows / rows[-1]
    ahead = wanted / rows[-1]
    weight = np.sqrt(n)  # late points say more about what comes
    for exponent in EXPONENTS:
        design = np.column_stack([np.ones(len(n)), -(n**-exponent)])
        (c, a), *_ = np.linalg.lstsq(design * weight[:, None], values * weight, rcond=None)
        if a < 0:
            a, c = 0.0, float(np.average(values, weights=weight**2))
        c = min(c, 1.0)
        error = float((weight**2 * (c - a * n**-exponent - values) ** 2).sum())
        if error < best:
            best, result = error, c - a * ahead**-exponent
    return result

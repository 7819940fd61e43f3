"""Ridge regression with λ chosen by the data, or given.

Criteria: generalised cross-validation, exact leave-one-out, a validation set's moments, or K folds
of moments; per target, or pooled over targets (slightly better and safer: one λ, no noise of
choice).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution, target_blocks
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.least_squares import LeastSquares, cholesky, nothing_varies
from coarlib.regression.solvers.leave_one_out import leave_one_out_errors
from coarlib.regression.solvers.ridge_path import (
    RidgePath,
    decomposition_work,
    lambda_grid,
    relative_curve,
)

__all__ = ["Ridge", "moment_error"]

CRITERIA = ("gcv", "leave_one_out", "validation", "folds")


@dataclass(frozen=True)
class Ridge(Solver):
    """Ridge regression, penalty ½ λ ‖w‖² in standardised units.

    Parameters
    ----------
    lam : float or float64 [T], optional
        λ; without it the best of a grid. In scikit-learn's units ``Ridge(alpha=n * lam)`` on
        standardised features.
    lams : float64 [L], optional
        The grid; :func:`lambda_grid` by default.
    choose : str, optional
        ``"gcv"`` (the default), ``"leave_one_out"`` (one more pass over the rows),
        ``"validation"`` (the rows held out) or ``"folds"`` (the default where ``folds`` is given).
    folds : int
        Into how many folds the rows are cut.
    pooled : bool
        One λ for all targets (mean error relative to each target's variance), else one each.
    """

    name: ClassVar[str] = "ridge"
    lam: float | NDArray[np.float64] | None = field(default=None, compare=False)
    lams: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    choose: str | None = None
    folds: int = 0
    pooled: bool = True

    def __post_init__(self) -> None:
        if self.choose not in (None, *CRITERIA):
            raise RegressionError(f"λ is chosen by {', '.join(CRITERIA)}, not by {self.choose!r}")
        given = np.asarray(0.0 if self.lam is None else self.lam)
        if not (np.isfinite(given).all() and (given >= 0).all()):
            raise RegressionError(f"λ must be finite and not negative, not {self.lam}")
        grid = np.asarray([1.0] if self.lams is None else self.lams)
        if not (len(grid) and np.isfinite(grid).all() and (grid > 0).all()):
            raise RegressionError("the λ grid must hold positive finite numbers")
        if self.folds < 0 or self.folds == 1:
            raise RegressionError(f"λ is chosen by at least 2 folds, not {self.folds}")

    @property
    def needs(self) -> frozenset[str]:
        """Held-out rows or X'X where those choose λ."""
        if self.lam is not None:
            return frozenset()
        wanted = {"validation": {"validation", "gram"}, "folds": {"gram"}}
        return frozenset(wanted.get(self._criterion, set()))

    @property
    def shrinks(self) -> bool:
        """Not at λ = 0."""
        return self.lam is None or bool(np.all(np.asarray(self.lam) > 0))

    @property
    def num_folds(self) -> int:
        """Folds of the training rows, where they choose λ."""
        return self.folds if self.lam is None and self._criterion == "folds" else 0

    @property
    def _criterion(self) -> str:
        return self.choose or ("folds" if self.folds else "gcv")

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets; ``details["curve"]`` is the pooled criterion along ``["grid"]``."""
        if problem.num_active == 0:
            return nothing_varies(problem)
        if self.lam is not None:
            return self._at(problem, self.lam)
        grid = lambda_grid() if self.lams is None else -np.sort(-np.asarray(self.lams, float))
        path = RidgePath(problem)
        scores = self._errors(path, grid)
        curve = relative_curve(path, scores)
        best = np.full(problem.num_targets, int(np.argmin(curve)))
        if not self.pooled:
            best = np.argmin(scores, axis=0)
        how = self._criterion
        solution = path.solution(grid[best], f"ridge by eigendecomposition, λ by {how}")
        solution.details |= {"grid": grid.tolist(), "curve": curve.tolist()}
        return solution

    def _at(self, problem: Problem, lam: float | NDArray[np.float64]) -> Solution:
        """Ridge at one λ, or one λ a target."""
        if not np.any(lam):
            return LeastSquares().solve(problem)
        if np.ndim(lam) == 0 and problem.gram.numel():
            solution = cholesky(problem, float(lam))
            if solution is not None:
                return solution
        each = np.broadcast_to(np.asarray(lam, float), problem.num_targets)
        return RidgePath(problem).solution(each, "ridge by eigendecomposition at the given λ")

    def _errors(self, path: RidgePath, grid: NDArray[np.float64]) -> NDArray[np.float64]:
        """The criterion, [L, T]."""
        problem, how = path.problem, self._criterion
        if how == "leave_one_out":
            return leave_one_out_errors(path, grid)
        if how == "validation":
            if problem.validation is None:
                raise RegressionError("ridge needs held-out rows to choose λ by them")
            return _path_errors(path, grid, problem.validation)
        if how == "gcv":
            return path.gcv_all(grid)
        if len(problem.folds) < 2:
            raise RegressionError(
                f"λ is chosen by at least 2 folds of the rows, not {len(problem.folds)}"
            )
        scores = np.zeros((len(grid), problem.num_targets))
        for fold in problem.folds:
            rest = RidgePath(Problem.from_moments(problem.moments - fold, problem.device))
            scores += _path_errors(rest, grid, fold) * fold.num_rows / problem.num_rows
        return scores

    def refit(self, found: Attributions) -> Ridge:
        """Keep the λ that held-out rows or folds have chosen."""
        if self.lam is not None or self._criterion in ("gcv", "leave_one_out"):
            return self
        return replace(self, lam=float(found.lam[0]) if self.pooled else found.lam)

    def work(self, size: Size) -> float:
        """One decomposition a fold, and one of all."""
        return decomposition_work(size) * (1 + self.num_folds)


def moment_error(
    problem: Problem, weight: torch.Tensor, moments: Moments, targets: slice
) -> NDArray[np.float64]:
    """Mean squared error of standardised weights on other rows, from those rows' moments.

    Parameters
    ----------
    problem : Problem
        The fit's problem (its scale and intercept).
    weight : torch [M, t]
        Standardised weights of ``targets``.
    moments : Moments
        The validation rows.

    Returns
    -------
    float64 [t]
    """
    raw = problem.raw_weight(weight)
    n = moments.num_rows
    # Residual r = (y - m_y) - (x - m_x)'w with the fit's means m: exact in sums over rows.
    if moments.pairs is None:
        raise RegressionError("errors from moments need X'X of the validation rows")
    part = moments.targets(targets).with_offset(problem.moments.mean_output[targets])
    mean = problem.moments.mean_mask
    kept = moments.kept.astype(np.float64)
    wm = mean @ raw
    cross = (raw * part.cross).sum(0) - wm * part.total
    product = torch.from_numpy(moments.pairs).double() @ torch.from_numpy(raw)
    quad = (raw * product.numpy()).sum(0) - 2 * wm * (kept @ raw) + n * wm**2
    return np.asarray(np.maximum((part.square - 2 * cross + quad) / n, 0.0))


def _path_errors(
    path: RidgePath, grid: NDArray[np.float64], moments: Moments
) -> NDArray[np.float64]:
    """Mean squared errors [L, T] of the path's solutions on the rows of ``moments``."""
    errors = np.zeros((len(grid), path.problem.num_targets))
    for targets in target_blocks(path.problem.num_targets):
        for index, lam in enumerate(grid):
            weight = path.weights(float(lam), targets)
            errors[index, targets] = moment_error(path.problem, weight, moments, targets)
    return errors

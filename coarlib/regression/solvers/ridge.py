"""Ridge regression along a path of λ from one eigendecomposition, with λ chosen by the data.

With R = V diag(d) V' and ĉ = V'c, the weights at λ are V (ĉ / (d + λ)) for every λ at no further
factorisation. Criteria: generalised cross-validation, a validation set's moments, or K folds of
moments; per target, or pooled over targets (slightly better and safer: one λ, no noise of choice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.moments import Moments
from coarlib.regression.problem import (
    Problem,
    Solution,
    quadratic_certificate,
    target_blocks,
)
from coarlib.regression.solvers.least_squares import add_errors, solve_least_squares

__all__ = ["RidgePath", "lambda_grid", "moment_error", "pooled_choice", "solve_ridge_path"]

GRID_POINTS = 50
SMALLEST, LARGEST = 1e-6, 1e3  # λ relative to 1, the variance of a standardised feature


def lambda_grid(points: int = GRID_POINTS) -> NDArray[np.float64]:
    """Return the default λ grid, descending."""
    return np.geomspace(LARGEST, SMALLEST, points)


class RidgePath:
    """All ridge solutions of a problem.

    Parameters
    ----------
    problem : Problem

    Attributes
    ----------
    values : float64 [K], vectors : float64 torch [M, K]
        Positive eigenvalues of R and their vectors; K is the rank.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.values, self.vectors = problem.eigen()
        self.rank = len(self.values)

    def rotated(self, targets: slice) -> torch.Tensor:
        """Return ĉ = V'c, float64 [K, t]."""
        return self.vectors.T @ self.problem.covariance(targets)

    def rss(self, lams: NDArray[np.float64], targets: slice) -> NDArray[np.float64]:
        """Residual sums of squares over n, float64 [L, t].

        Summed as what the span of X cannot reach plus what shrinkage leaves; the difference
        yy - 2c'w + w'Rw cancels to noise where the fit interpolates.
        """
        d, squares = self.values, self.rotated(targets).square()
        yy = torch.as_tensor(self.problem.variance[targets], device=d.device)
        beyond = (yy - (squares / d[:, None]).sum(0)).clamp_min(0)
        if self.rank >= self.problem.num_rows - 1:
            beyond.zero_()
        lam = torch.as_tensor(lams, device=d.device)[:, None]
        left = (lam / (d + lam)).square() / d
        return np.asarray((left @ squares + beyond).cpu().numpy())

    def degrees_of_freedom(self, lams: NDArray[np.float64]) -> NDArray[np.float64]:
        """Effective parameters with the intercept, tr(H) + 1, float64 [L]."""
        d = self.values.cpu().numpy()
        return np.asarray((d / (d + np.asarray(lams)[:, None])).sum(1) + 1)

    def gcv(self, lams: NDArray[np.float64], targets: slice) -> NDArray[np.float64]:
        """Generalised cross-validation, n‖y - ŷ‖² / (n - tr H)², float64 [L, t]."""
        n = self.problem.num_rows
        left = n - self.degrees_of_freedom(lams)
        with np.errstate(divide="ignore"):
            factor = np.where(left > 1e-9 * n, n**2 / np.maximum(left, 1e-300) ** 2, np.inf)
        scores = self.rss(lams, targets) * np.where(np.isfinite(factor), factor, 1)[:, None]
        scores[~np.isfinite(factor)] = np.inf
        return scores

    def gcv_all(self, lams: NDArray[np.float64]) -> NDArray[np.float64]:
        """Generalised cross-validation of all targets, float64 [L, T]."""
        parts = [self.gcv(lams, targets) for targets in target_blocks(self.problem.num_targets)]
        return np.concatenate(parts, axis=1)

    def weights(self, lam: NDArray[np.float64] | float, targets: slice) -> torch.Tensor:
        """Return standardised weights at one λ or one per target, float64 [M, t]."""
        d = self.values[:, None]
        lam_t = torch.as_tensor(lam, dtype=d.dtype, device=d.device)
        return self.vectors @ (self.rotated(targets) / (d + lam_t))

    def solution(self, lam: NDArray[np.float64], status: str) -> Solution:
        """Return the solution at ``lam`` [T], with standard errors."""
        problem = self.problem
        solution = Solution.empty(problem, status)
        solution.lam[:] = lam
        rss = np.zeros(problem.num_targets)
        for targets in target_blocks(problem.num_targets):
            weight = self.weights(lam[targets], targets)
            rss[targets] = self._rss_each(lam[targets], targets) * problem.num_rows
            lost = solution.fill(problem, targets, weight)
            solution.gap[targets] = self._gap(weight, lam[targets], lost, targets)
        dof, spread = self._errors(lam)
        add_errors(problem, solution, spread, rss, dof)
        solution.details |= {
            "condition": _condition(self, float(np.min(lam))),
            "rank": self.rank,
            "degrees_of_freedom": float(np.mean(dof)),
            "singular": self.rank < problem.num_active,
        }
        return solution

    def _rss_each(self, lam: NDArray[np.float64], targets: slice) -> NDArray[np.float64]:
        d, squares = self.values[:, None], self.rotated(targets).square()
        yy = torch.as_tensor(self.problem.variance[targets], device=d.device)
        beyond = (yy - (squares / d).sum(0)).clamp_min(0)
        if self.rank >= self.problem.num_rows - 1:
            beyond.zero_()
        lam_t = torch.as_tensor(lam, device=d.device)
        left = ((lam_t / (d + lam_t)).square() / d * squares).sum(0)
        return np.asarray((left + beyond).cpu().numpy())

    def _gap(
        self,
        weight: torch.Tensor,
        lam: NDArray[np.float64],
        lost: NDArray[np.float64],
        targets: slice,
    ) -> NDArray[np.float64]:
        """Certificates of weights [M, t] at λ [t]."""
        problem = self.problem
        lam_t = torch.as_tensor(lam, device=weight.device)
        gradient = problem.covariance(targets) - problem.exact_times_gram(weight) - lam_t * weight
        squares = gradient.square().sum(0).cpu().numpy()
        least, most = float(self.values[0]), float(self.values[-1]) * 1.001
        least = least if self.rank == problem.num_active else 0.0
        return quadratic_certificate(
            squares, lam + least, most + float(lam.max()), lost, problem.variance[targets]
        )

    def _errors(
        self, lam: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64] | float, NDArray[np.float64]]:
        """Degrees of freedom, and the diagonal of A⁻¹RA⁻¹ for each λ ([M] if there is one λ)."""
        unique, where = np.unique(lam, return_inverse=True)
        d = self.values[:, None]
        kept = d / (d + torch.as_tensor(unique, device=d.device)).square()
        spread = (self.vectors.square() @ kept).cpu().numpy()
        dof = self.degrees_of_freedom(unique)
        if len(unique) == 1:
            return float(dof[0]), spread[:, 0]
        return dof[where], spread[:, where]


def _condition(path: RidgePath, lam: float) -> float:
    smallest = float(path.values[0]) if path.rank == path.problem.num_active else 0.0
    bottom = smallest + lam
    return (float(path.values[-1]) + lam) / bottom if bottom > 0 else float("inf")


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


def solve_ridge_path(
    problem: Problem,
    lams: NDArray[np.float64] | None = None,
    *,
    choose: str = "gcv",
    pooled: bool = True,
    validation: Moments | None = None,
    folds: Sequence[Moments] | None = None,
    errors: Callable[[RidgePath, NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Solution:
    """Fit ridge with λ chosen from a grid.

    Parameters
    ----------
    problem : Problem
    lams : float64 [L], optional
        The grid; :func:`lambda_grid` by default.
    choose : str
        ``"gcv"``, ``"validation"`` (needs ``validation``), ``"folds"`` (needs ``folds``: disjoint
        moments that add up to the problem's) or ``"errors"`` (needs ``errors``).
    pooled : bool
        One λ for all targets (mean error relative to each target's variance), else one each.
    errors : callable, optional
        Maps a path and a grid [L] to squared errors [L, T]; exact leave-one-out is
        :func:`~coarlib.regression.solvers.leave_one_out.leave_one_out` with its rows bound.

    Returns
    -------
    Solution
        ``details["curve"]``: the pooled criterion along ``details["grid"]``.
    """
    if problem.num_active == 0:
        return solve_least_squares(problem)
    grid = lambda_grid() if lams is None else np.sort(np.asarray(lams, float))[::-1].copy()
    if not (len(grid) and np.isfinite(grid).all() and (grid > 0).all()):
        raise RegressionError("the λ grid must hold positive finite numbers")
    path = RidgePath(problem)
    scores = np.zeros((len(grid), problem.num_targets))
    if choose == "gcv":
        scores = path.gcv_all(grid)
    elif choose == "validation" and validation is not None:
        scores = _path_errors(path, grid, validation)
    elif choose == "folds" and folds is not None and len(folds) > 1:
        for fold in folds:
            rest = RidgePath(Problem.from_moments(problem.moments - fold, problem.device))
            scores += _path_errors(rest, grid, fold) * fold.num_rows / problem.num_rows
    elif choose == "errors" and errors is not None:
        scores = errors(path, grid)
    else:
        raise RegressionError(
            f"choose={choose!r} needs validation moments, at least two folds of moments, or an "
            "error function"
        )
    curve = _relative_curve(path, scores)
    best = np.full(problem.num_targets, int(np.argmin(curve)))
    if not pooled:
        best = np.argmin(scores, axis=0)
    solution = path.solution(grid[best], f"ridge by eigendecomposition, λ by {choose}")
    solution.details |= {"grid": grid.tolist(), "curve": curve.tolist()}
    return solution


def _relative_curve(path: RidgePath, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over targets of criterion [L, T] relative to each target's variance, [L]."""
    variance = path.problem.variance
    varying = variance > 0
    if not varying.any():
        return np.zeros(len(scores))
    return np.asarray((scores[:, varying] / variance[varying]).mean(1))


def pooled_choice(path: RidgePath, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """λ with the smallest pooled GCV, the same for every target, float64 [T]."""
    best = int(np.argmin(_relative_curve(path, path.gcv_all(grid))))
    return np.full(path.problem.num_targets, grid[best])


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

"""Ridge regression along a path of λ from one eigendecomposition.

With R = V diag(d) V' and ĉ = V'c, the weights at λ are V (ĉ / (d + λ)) for every λ at no further
factorisation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.regression.problem import (
    Problem,
    Solution,
    quadratic_certificate,
    target_blocks,
)
from coarlib.regression.solvers.base import Size
from coarlib.regression.solvers.errors import add_posterior_errors, noise_sd

__all__ = ["RidgePath", "decomposition_work", "lambda_grid", "pooled_choice", "relative_curve"]

GRID_POINTS = 50
SMALLEST, LARGEST = 1e-6, 1e3  # λ relative to 1, the variance of a standardised feature


def lambda_grid(points: int = GRID_POINTS) -> NDArray[np.float64]:
    """Return the default λ grid, descending."""
    return np.geomspace(LARGEST, SMALLEST, points)


def decomposition_work(size: Size) -> float:
    """Float64 operations of an eigendecomposition and of products with its vectors."""
    return 25.0 * size.side**3 + 4.0 * size.side * size.features * size.targets


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
        """Residual sums of squares over n: at each λ, [L, t], or at λ [1, t], one each, [1, t].

        Summed as what the span of X cannot reach plus what shrinkage leaves; the difference
        yy - 2c'w + w'Rw cancels to noise where the fit interpolates.
        """
        d, squares = self.values[:, None], self.rotated(targets).square()
        yy = torch.as_tensor(self.problem.variance[targets], device=d.device)
        beyond = (yy - (squares / d).sum(0)).clamp_min(0)
        if self.rank >= self.problem.num_rows - 1:
            beyond.zero_()
        lam = torch.as_tensor(lams, device=d.device)
        if lam.ndim == 2:
            left = ((lam / (d + lam)).square() / d * squares).sum(0, keepdim=True)
        else:
            left = ((lam / (d + lam)).square() / d).T @ squares
        return np.asarray((left + beyond).cpu().numpy())

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
        lam_t = torch.tensor(lam, dtype=d.dtype, device=d.device)
        return self.vectors @ (self.rotated(targets) / (d + lam_t))

    def solution(self, lam: NDArray[np.float64], status: str) -> Solution:
        """Return the solution at ``lam`` [T], with standard errors."""
        problem = self.problem
        solution = Solution.empty(problem, status)
        solution.lam[:] = lam
        rss = np.zeros(problem.num_targets)
        for targets in target_blocks(problem.num_targets):
            weight = self.weights(lam[targets], targets)
            rss[targets] = self.rss(lam[None, targets], targets)[0] * problem.num_rows
            lost = solution.fill(problem, targets, weight)
            solution.gap[targets] = self._gap(weight, lam[targets], lost, targets)
        dof, marginal, left = self._spread(lam)
        add_posterior_errors(problem, solution, marginal, left, noise_sd(problem, rss, dof))
        solution.details |= {
            "condition": _condition(self, float(np.min(lam))),
            "rank": self.rank,
            "degrees_of_freedom": float(np.mean(dof)),
            "singular": self.rank < problem.num_active,
        }
        return solution

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

    def _spread(
        self, lam: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Degrees of freedom, posterior variances in units of σ² / n, and their share of the prior.

        The prior variance is 1/λ in these units, and the posterior covariance
        I/λ - V diag(1/λ - 1/(d + λ)) V'. Arrays are [T], [M, T] and [M, T], without T for one λ.
        """
        unique, where = np.unique(lam, return_inverse=True)
        d, lam_t = self.values[:, None], torch.as_tensor(unique, device=self.values.device)
        told = self.vectors.square() @ (1 / lam_t - 1 / (d + lam_t))
        marginal = (1 / lam_t - told).clamp_min(0).cpu().numpy()
        left, dof = marginal * unique, self.degrees_of_freedom(unique)
        if len(unique) == 1:
            return dof, marginal[:, 0], left[:, 0]
        return dof[where], marginal[:, where], left[:, where]


def _condition(path: RidgePath, lam: float) -> float:
    smallest = float(path.values[0]) if path.rank == path.problem.num_active else 0.0
    bottom = smallest + lam
    return (float(path.values[-1]) + lam) / bottom if bottom > 0 else float("inf")


def relative_curve(path: RidgePath, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over targets of criterion [L, T] relative to each target's variance, [L]."""
    variance = path.problem.variance
    varying = variance > 0
    if not varying.any():
        return np.zeros(len(scores))
    return np.asarray((scores[:, varying] / variance[varying]).mean(1))


def pooled_choice(path: RidgePath, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """λ with the smallest pooled GCV, the same for every target, float64 [T]."""
    best = int(np.argmin(relative_curve(path, path.gcv_all(grid))))
    return np.full(path.problem.num_targets, grid[best])

"""Least squares, and ridge at a given λ, by Cholesky with refinement and a certificate.

The Cholesky factor of R + λI serves all targets. Where R is singular (no more rows than features,
or features that move together) plain least squares has no unique answer; the one of smallest norm
in standardised units is returned and the status says so. Ridge by cross-validation
(:mod:`coarlib.regression.solvers.ridge`) predicts far better there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.regression.moments.counts import column_sums
from coarlib.regression.problem import (
    Problem,
    Solution,
    quadratic_certificate,
    target_blocks,
)
from coarlib.regression.solvers.base import Size, Solver

__all__ = ["LeastSquares", "add_errors", "cholesky", "condition_number", "nothing_varies"]

# Beyond this the smallest eigenvalue is within rounding of zero.
SINGULAR_CONDITION = 1e12
REFINE_ABOVE = 1e-11  # relative residual of the normal equations
REFINE_STEPS = 4


@dataclass(frozen=True)
class LeastSquares(Solver):
    """Least squares; where it has no unique answer, the one of smallest norm."""

    name: ClassVar[str] = "least_squares"

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``details``: ``condition`` (1-norm), ``degrees_of_freedom`` (parameters, with
            intercept) and ``singular``; standard errors are σ_t √(C⁻¹)_jj / √n with
            σ_t² = RSS / (n - M - 1).
        """
        if problem.num_active == 0:
            return nothing_varies(problem)
        if problem.gram.numel() == 0:
            return min_norm(problem, "dual form")
        if problem.num_rows <= problem.num_active:
            return min_norm(problem, f"{problem.num_rows} rows for {problem.num_active} features")
        solution = cholesky(problem, 0.0)
        if solution is None:
            return min_norm(problem, "features that are linear combinations of others")
        return solution

    def work(self, size: Size) -> float:
        """A factor, its inverse and products with it."""
        return 1.5 * size.side**3 + 4.0 * size.side * size.features * size.targets


def cholesky(problem: Problem, lam: float) -> Solution | None:
    """Solve (R + λI) W = C by Cholesky; None where that is singular to working precision."""
    matrix = problem.gram
    if lam:
        matrix = matrix.clone()
        matrix.diagonal().add_(lam)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(factor)
    largest, smallest = _eigenvalue_bounds(matrix, inverse)
    if not smallest > 0 or largest / smallest > SINGULAR_CONDITION:
        return None
    solution = Solution.empty(problem, "ridge by Cholesky" if lam else "least squares by Cholesky")
    solution.lam[:] = lam
    rss = np.zeros(problem.num_targets)
    for targets in target_blocks(problem.num_targets):
        c = problem.covariance(targets)
        weight, gradient = _refined(matrix, inverse, c)
        yy = problem.variance[targets]
        squares = column_sums(gradient)[1].cpu().numpy()
        fitted = (weight * (2 * c - problem.gram @ weight if lam else c)).sum(0).cpu().numpy()
        rss[targets] = problem.num_rows * np.maximum(yy - fitted, 0)
        lost = solution.fill(problem, targets, weight)
        solution.gap[targets] = quadratic_certificate(squares, smallest, largest, lost, yy)
    spread, dof = _spread(problem, inverse, lam)
    add_errors(problem, solution, spread, rss, dof)
    solution.details |= {
        "condition": largest / smallest,
        "degrees_of_freedom": dof,
        "singular": False,
    }
    return solution


def _refined(
    matrix: torch.Tensor, inverse: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve A W = C by the inverse and refinement steps; returns W and the gradient C - AW.

    A product with the inverse is several times faster than triangular solves, and refinement
    makes up for what it loses where A is ill-conditioned.
    """
    weight = inverse @ c
    gradient = torch.addmm(c, matrix, weight, beta=1, alpha=-1)
    scale = column_sums(c)[1].clamp_min(torch.finfo(c.dtype).tiny)
    for _ in range(REFINE_STEPS):
        if float((column_sums(gradient)[1] / scale).max()) <= REFINE_ABOVE**2:
            break
        weight.addmm_(inverse, gradient)
        gradient = torch.addmm(c, matrix, weight, beta=1, alpha=-1)
    return weight, gradient


def _spread(
    problem: Problem, inverse: torch.Tensor, lam: float
) -> tuple[NDArray[np.float64], float]:
    """Diagonal of A⁻¹RA⁻¹, and the degrees of freedom tr(A⁻¹R) + 1, with A = R + λI."""
    diagonal = inverse.diagonal()
    if not lam:
        return diagonal.cpu().numpy(), problem.num_active + 1.0
    # A⁻¹RA⁻¹ = A⁻¹ - λA⁻².
    spread = diagonal - lam * inverse.square().sum(1)
    dof = problem.num_active - lam * float(diagonal.sum()) + 1
    return spread.clamp_min(0).cpu().numpy(), dof


def add_errors(
    problem: Problem,
    solution: Solution,
    spread: NDArray[np.float64],
    rss: NDArray[np.float64],
    dof: float | NDArray[np.float64],
) -> None:
    """Set standard errors from the standardised covariance diagonal ``spread`` [M] or [M, T].

    NaN where no degree of freedom is left to estimate the noise.
    """
    left = problem.num_rows - np.asarray(dof, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.where(left > 0, np.sqrt(rss / np.where(left > 0, left, 1)), np.nan)
    solution.error_target = np.broadcast_to(sigma, (problem.num_targets,)).copy()
    errors = np.zeros((problem.moments.num_features, *spread.shape[1:]))
    scale = problem.scale if spread.ndim == 1 else problem.scale[:, None]
    errors[problem.active] = np.sqrt(spread / problem.num_rows) / scale
    solution.error_feature = errors


def _eigenvalue_bounds(matrix: torch.Tensor, inverse: torch.Tensor) -> tuple[float, float]:
    """Bound the eigenvalues of A from above and below by the 1-norms of A and A⁻¹."""
    above, below = (float(m.abs().sum(0).max()) for m in (matrix, inverse))
    return above, 1 / below if below > 0 else np.inf


def min_norm(problem: Problem, reason: str) -> Solution:
    """Fit the least-squares weights of smallest norm by an eigendecomposition of R."""
    values, vectors = problem.eigen()
    rank = len(values)
    solution = Solution.empty(problem, f"least squares of smallest norm ({reason})")
    rss = np.zeros(problem.num_targets)
    for targets in target_blocks(problem.num_targets):
        c = problem.covariance(targets)
        weight = vectors @ ((vectors.T @ c) / values[:, None])
        left = c - problem.exact_times_gram(weight)
        yy = problem.variance[targets]
        lost = solution.fill(problem, targets, weight)
        squares = (vectors.T @ left).square().sum(0).cpu().numpy()
        if rank >= problem.num_rows - 1:  # the optimum is 0, so the objective is the excess
            unexplained = yy - (weight * (c + left)).sum(0).cpu().numpy()
            squares = np.maximum(unexplained, 0) * float(values[0])
        solution.gap[targets] = quadratic_certificate(
            squares, float(values[0]), float(values[-1]), lost, yy
        )
        rss[targets] = problem.num_rows * np.maximum(yy - (weight * c).sum(0).cpu().numpy(), 0)
    spread = (vectors.square() / values).sum(1).cpu().numpy()
    add_errors(problem, solution, spread, rss, rank + 1)
    solution.details |= {
        "condition": float("inf"),
        "rank": rank,
        "degrees_of_freedom": rank + 1.0,
        "singular": True,
    }
    return solution


def nothing_varies(problem: Problem) -> Solution:
    """Return the means of the targets, where no feature varies."""
    solution = Solution.empty(problem, "no feature varies: the mean of each target")
    rss = problem.num_rows * problem.variance
    add_errors(problem, solution, np.zeros(0), rss, 1)
    solution.details |= {"condition": 1.0, "degrees_of_freedom": 1.0, "singular": True}
    return solution


def condition_number(problem: Problem) -> float:
    """Condition number of R in the 1-norm; inf where it is singular."""
    factor, info = torch.linalg.cholesky_ex(problem.gram)
    if problem.num_rows <= problem.num_active or int(info) != 0:
        return float("inf")
    largest, smallest = _eigenvalue_bounds(problem.gram, torch.cholesky_inverse(factor))
    return largest / smallest

"""Standard errors of weights, where honest ones can be given.

Which are honest was found by simulation (benchmarks/coverage_regression.py; the table is in
docs/regression.md): intervals of 1.96 errors must cover about 95% of all weights *and* of the ten
strongest of a target, which are what people look at, for dense and for sparse truths.

Least squares: residuals are larger where more is ablated, so errors come from each row's residual
(HC3, or HC2 from few rows: MacKinnon and White, 1985). Ridge and its kin: the posterior's variance
is not enough, for the strongest weights are shrunk by more than it tells. With k the share of a
weight's prior variance that is left, its mean is (1 - k) times the truth, so the square of
``k / (1 - k)`` times the weight is added. Where k is large the guess of that bias is too poor, and
no error is given.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.regression.problem import Problem, Solution

__all__ = ["add_errors", "add_posterior_errors", "add_robust_errors", "noise_sd"]

MANY_ROWS = 5  # a feature
LEAST_LEFT = 10  # degrees of freedom for the noise
MOST_PRIOR = 0.25  # share of the prior variance that may be left


def noise_sd(
    problem: Problem, rss: NDArray[np.float64], dof: float | NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Standard deviation of the noise of each target, [T]; None where too little is left of it."""
    left = problem.num_rows - np.asarray(dof, float)
    if np.min(left) < LEAST_LEFT:
        return None
    return np.broadcast_to(np.sqrt(rss / left), problem.num_targets)


def add_errors(
    problem: Problem,
    solution: Solution,
    spread: NDArray[np.float64],
    sigma: NDArray[np.float64] | None,
) -> None:
    """Set classical errors: ``spread`` [M] is the diagonal of R⁻¹."""
    if sigma is None:
        return
    solution.error_target = sigma
    solution.error_feature = np.zeros(problem.moments.num_features)
    solution.error_feature[problem.active] = np.sqrt(spread / problem.num_rows) / problem.scale
    solution.details["errors"] = "classical: equal variances"


def add_posterior_errors(
    problem: Problem,
    solution: Solution,
    marginal: NDArray[np.float64],
    left: NDArray[np.float64],
    sigma: NDArray[np.float64] | None,
) -> None:
    """Set errors of shrunken weights.

    Parameters
    ----------
    problem, solution
        The weights are filled in, in units of the prior (features reweighted by its root).
    marginal : float64 [M] or [M, T]
        Posterior variances, in units of σ² / n.
    left : float64, the same shape
        Which share of the prior variance that is.
    sigma : float64 [T] or None
    """
    # A feature counts by its prior variance in standardised units: weak ones may be all prior.
    mean = problem.moments.mean_mask[problem.active]
    importance = mean * (1 - mean) / problem.scale**2
    shares = (importance @ left) / importance.sum()
    if sigma is None or np.mean(shares) > MOST_PRIOR:
        solution.details["errors"] = "none: the rows say too little beside the prior"
        return
    if left.ndim == 1:
        marginal, left = marginal[:, None], left[:, None]
    weight = solution.weight[problem.active].astype(np.float64)
    variance = marginal / (problem.num_rows * problem.scale[:, None] ** 2)
    bias = weight * left / np.maximum(1 - left, 1e-9)
    errors = np.zeros(solution.weight.shape)
    errors[problem.active] = np.sqrt(variance * sigma**2 + bias**2)
    solution.error_feature, solution.error_target = errors, None
    solution.details["errors"] = "posterior, with the bias of shrinkage"


def add_robust_errors(
    problem: Problem, solution: Solution, inverse: torch.Tensor, rows: int
) -> None:
    """Set errors from the residuals e and leverages h of some rows, which are read again.

    With a = R⁻¹z / n, the variance of the weights is Σ a² e² / (1 - h)² (HC3), which is too much
    where rows are few for their features: there Σ a² e² / (1 - h) (HC2). ``rows`` of them, drawn
    at random, stand for all.
    """
    n = problem.num_rows
    if n - problem.num_active - 1 < LEAST_LEFT:
        return
    scale = torch.as_tensor(problem.scale, device=problem.device)[:, None]
    raw = torch.as_tensor(solution.weight[problem.active], device=problem.device).double()
    weight = (raw * scale).float()
    mean = torch.as_tensor(problem.moments.mean_output, device=problem.device)
    narrow = (inverse / n).float()
    many = n >= MANY_ROWS * problem.num_active
    total = torch.zeros(*weight.shape, dtype=torch.float64, device=problem.device)
    read = 0
    for z, outputs in some_rows(problem, rows).blocks():
        read += len(z)
        a = z @ narrow
        kept = (1 - 1 / n - (z * a).sum(1)).clamp_min(1e-6)
        y = torch.as_tensor(outputs, device=problem.device).double() - mean
        residual = (y.float() - z @ weight) / (kept if many else kept.sqrt())[:, None]
        total += a.square().T @ residual.square()
    if read < LEAST_LEFT:  # the drawn ones are not finite
        return
    errors = np.zeros(solution.weight.shape)
    errors[problem.active] = (total.mul_(n / read).sqrt_() / scale).cpu().numpy()
    solution.error_feature, solution.error_target = errors, None
    some = f", from {read:,} rows" if read < n else ""
    solution.details["errors"] = f"robust to unequal variances (HC{3 if many else 2}{some})"


def some_rows(problem: Problem, rows: int) -> Problem:
    """Return the problem that reads at most so many of its rows again, always the same ones."""
    positions = problem.positions
    if positions is None or len(positions) <= rows:
        return problem
    drawn = np.random.default_rng(0).choice(len(positions), rows, replace=False)
    return replace(problem, positions=positions[np.sort(drawn)])

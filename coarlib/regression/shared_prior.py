"""Shared-prior ridge: one prior variance per feature, learnt from all targets together.

Targets of one model share which components matter at all. With ``w_t ~ N(0, σ_t² diag(τ))`` the
prior variances τ are fitted by maximum likelihood (empirical Bayes): given τ, every target has the
posterior of a ridge regression and all share one factorisation; given the posteriors,
``τ_j`` becomes the mean over targets of ``E[w_jt²] / σ_t²`` (an EM step). Components that matter to
nobody are shrunk away, which on real rows halves the ablations needed for a given held-out
correlation. Where the truth is dense and targets share nothing it is worse than plain ridge, so
choose on held-out rows (:mod:`coarlib.regression.choose`), never by hope.

A last step scales τ by cross-validation: one ridge path in features multiplied by √τ.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.least_squares import solve_least_squares
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.ridge import RidgePath, lambda_grid, pooled_choice

__all__ = ["learn_prior", "solve_shared_prior"]

EM_STEPS = 40
LEARNING_TARGETS = 1024  # more say nothing new about M variances and cost time
SMALLEST_PRIOR = 1e-8  # relative to the mean: below it a feature is out


def learn_prior(
    problem: Problem,
    *,
    steps: int = EM_STEPS,
    groups: NDArray[np.int64] | None = None,
    group_weight: float = 0.0,
    max_targets: int = LEARNING_TARGETS,
) -> tuple[NDArray[np.float64], list[float]]:
    """Fit the prior variances by EM.

    Parameters
    ----------
    problem : Problem
    steps : int
        EM steps from the flat prior of a GCV ridge.
    groups : int64 [M], optional
        Group of each active feature (its layer, say).
    group_weight : float
        How many targets the mean of a group counts for: 0 ignores groups, large values give all
        features of a group one variance.
    max_targets : int
        Learn from so many targets, evenly spaced.

    Returns
    -------
    variance : float64 [M]
        τ, in units of each target's noise variance.
    evidence : list of float
        Log marginal likelihood (up to a constant) before each step.
    """
    varying = np.flatnonzero(problem.variance > 0)
    if len(varying) == 0 or problem.num_active == 0:
        return np.ones(problem.num_active), []
    spaced = np.linspace(0, len(varying) - 1, min(max_targets, len(varying)))
    chosen = varying[spaced.round().astype(np.int64)]
    c = problem.covariance(chosen)
    yy = torch.as_tensor(problem.variance[chosen], device=c.device)
    n = problem.num_rows
    # Explained and unexplained variance of a first guess: half each.
    start = 1.0 / problem.num_active
    tau = torch.full((problem.num_active,), start, dtype=torch.float64, device=c.device)
    evidence = []
    for _ in range(steps):
        mean, marginal, logdet = problem.posterior(tau, c)
        noise = n * (yy - (mean * c).sum(0)).clamp_min(1e-12 * yy) / max(n - 1, 1)
        evidence.append(float(-0.5 * (n - 1) * noise.log().sum()) - 0.5 * len(chosen) * logdet)
        tau = (mean.square() / noise).mean(1) + marginal
        if groups is not None and group_weight > 0:
            tau = _towards_groups(tau, groups, group_weight / (group_weight + len(chosen)))
        tau = tau.clamp_min(SMALLEST_PRIOR * float(tau.mean()))
    return tau.cpu().numpy(), evidence


def _towards_groups(tau: torch.Tensor, groups: NDArray[np.int64], share: float) -> torch.Tensor:
    """Mix each variance with the mean of its group."""
    index = torch.as_tensor(groups, device=tau.device)
    count = int(index.max()) + 1
    sums = tau.new_zeros(count).index_add_(0, index, tau)
    sizes = tau.new_zeros(count).index_add_(0, index, torch.ones_like(tau))
    return (1 - share) * tau + share * (sums / sizes.clamp_min(1))[index]


def solve_shared_prior(
    problem: Problem,
    *,
    steps: int = EM_STEPS,
    temper: float = 1.0,
    groups: NDArray[np.int64] | None = None,
    group_weight: float = 0.0,
    pooled: bool = True,
    prior: NDArray[np.float64] | None = None,
) -> Solution:
    """Fit ridge with prior variances shared by all targets.

    Parameters
    ----------
    problem : Problem
    steps, groups, group_weight
        See :func:`learn_prior`; ``groups`` has one entry for each of the N features here.
    temper : float
        Exponent of the prior: 1 is the learnt one, 0 plain ridge, between them a compromise.
    pooled : bool
        One scale of the prior for all targets (chosen by GCV), else one each.
    prior : float64 [N], optional
        Prior variances from elsewhere (another fit, gradients); skips learning.

    Returns
    -------
    Solution
        Standard errors are posterior standard deviations. ``details``: ``evidence`` before the
        first and after the last step, ``effective_features`` (Σ τ)² / Σ τ².
    """
    if not 0 <= temper <= 1:
        raise RegressionError(f"temper must be between 0 and 1, not {temper}")
    if problem.num_active == 0:
        return solve_least_squares(problem)
    evidence: list[float] = []
    if prior is None:
        inner = None if groups is None else _checked_groups(problem, groups)
        tau, evidence = learn_prior(problem, steps=steps, groups=inner, group_weight=group_weight)
    else:
        if prior.shape != (problem.moments.num_features,) or not (prior >= 0).all():
            raise RegressionError(
                f"prior must be {problem.moments.num_features} variances that are not negative"
            )
        tau = np.maximum(prior[problem.active], SMALLEST_PRIOR * prior.max(initial=1e-300))
    tau = tau**temper
    tau /= tau.mean()
    weighted = problem.reweighted(np.sqrt(tau))
    path = RidgePath(weighted)
    grid = lambda_grid()
    lam = pooled_choice(path, grid) if pooled else grid[np.argmin(path.gcv_all(grid), axis=0)]
    solution = path.solution(lam, f"shared prior by {steps} EM steps, its scale by GCV")
    solution.error_feature = _posterior_spread(path, lam)
    solution.details |= {
        "evidence": evidence[:1] + evidence[-1:],
        "effective_features": float(tau.sum() ** 2 / (tau**2).sum()),
        "temper": temper,
    }
    return solution


def _posterior_spread(path: RidgePath, lam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Posterior sd of raw weights in units of the noise sd, [N, T] ([N] for one λ).

    In reweighted features the prior variance is s = 1/(nλ) and the posterior covariance
    s I - V diag(s - 1/(n d + nλ)) V'.
    """
    problem, n = path.problem, path.problem.num_rows
    unique, where = np.unique(lam, return_inverse=True)
    d = path.values[:, None]
    lam_t = torch.as_tensor(unique, device=d.device)
    prior = 1 / (n * lam_t)
    explained = path.vectors.square() @ (prior - 1 / (n * (d + lam_t)))
    variance = (prior - explained).clamp_min(0).cpu().numpy()
    errors = np.zeros((problem.moments.num_features, len(unique)))
    errors[problem.active] = np.sqrt(variance) / problem.scale[:, None]
    return errors[:, 0] if len(unique) == 1 else errors[:, where]


def _checked_groups(problem: Problem, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.shape != (problem.moments.num_features,) or groups.dtype.kind not in "iu":
        raise RegressionError(
            f"groups must be one integer for each of the {problem.moments.num_features} features"
        )
    return np.unique(groups[problem.active], return_inverse=True)[1].astype(np.int64)

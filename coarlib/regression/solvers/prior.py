"""Learning a prior of the weights from all targets together, by expectation and maximisation.

With ``w_t ~ N(s G_t, σ_t² diag(τ))``: given τ and s, every target has the posterior of a ridge
regression and all share one factorisation; given the posteriors, τ_j is the mean over targets of
``E[(w_jt - s G_jt)²] / σ_t²`` and s, one a group of features, the best multiple of the scores G.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.files import whole_file
from coarlib.loading import load_npy, load_npz
from coarlib.regression.problem import Problem

__all__ = ["Prior", "learn_prior", "load_prior_scores", "save_prior_scores"]

EM_STEPS = 40
LEARNING_TARGETS = 1024  # more say nothing new about M variances and cost time
PASSES = "forward_passes"
SETTLED = 1e-3  # steps end when one adds less than this share of the evidence gained so far
SMALLEST_PRIOR = 1e-8  # relative to the mean: below it a feature is out


@dataclass(frozen=True)
class Prior:
    """A prior of the weights, learnt from all targets: mean ``slope · scores``, variances τ.

    Attributes
    ----------
    variance : float64 [M]
        τ, in units of each target's noise variance.
    slope : float64 [M]
        What the scores of each feature are multiplied with (one value a group); zeros without any.
    evidence : list of float
        Log marginal likelihood (up to a constant) before each step.
    """

    variance: NDArray[np.float64]
    slope: NDArray[np.float64]
    evidence: list[float]


def learn_prior(
    problem: Problem,
    *,
    steps: int = EM_STEPS,
    groups: NDArray[np.int64] | None = None,
    group_weight: float = 0.0,
    scores: NDArray[np.float64] | None = None,
    max_targets: int = LEARNING_TARGETS,
) -> Prior:
    """Fit the prior by EM.

    Parameters
    ----------
    problem : Problem
    steps : int
        At most so many EM steps, from a flat prior of mean zero.
    groups : int64 [M], optional
        Group of each active feature (its layer, say).
    group_weight : float
        How many targets the mean of a group's variances counts for: 0 ignores groups, large
        values give all features of a group one variance.
    scores : float64 [M, T], optional
        Guesses of the standardised weights; the prior mean is a multiple of them, one a group.
    max_targets : int
        Learn from so many targets, evenly spaced.
    """
    varying = np.flatnonzero(problem.variance > 0)
    slope = np.zeros(problem.num_active)
    if len(varying) == 0 or problem.num_active == 0:
        return Prior(np.ones(problem.num_active), slope, [])
    spaced = np.linspace(0, len(varying) - 1, min(max_targets, len(varying)))
    chosen = varying[spaced.round().astype(np.int64)]
    c = problem.covariance(chosen)
    yy = torch.as_tensor(problem.variance[chosen], device=c.device)
    guess = None if scores is None else _Guess(problem, scores[:, chosen], groups)
    n = problem.num_rows
    # Explained and unexplained variance of a first guess: half each.
    start = 1.0 / problem.num_active
    tau = torch.full((problem.num_active,), start, dtype=torch.float64, device=c.device)
    evidence = []
    for _ in range(steps):
        left, spread = (c, yy) if guess is None else guess.unexplained(c, yy)
        change, marginal, logdet = problem.posterior(tau, left)
        noise = n * (spread - (change * left).sum(0)).clamp_min(1e-12 * yy) / max(n - 1, 1)
        evidence.append(float(-0.5 * (n - 1) * noise.log().sum()) - 0.5 * len(chosen) * logdet)
        if guess is not None:
            change = guess.improve(change, tau, noise)
        tau = (change.square() / noise).mean(1) + marginal
        if groups is not None and group_weight > 0:
            tau = _towards_groups(tau, groups, group_weight / (group_weight + len(chosen)))
        tau = tau.clamp_min(SMALLEST_PRIOR * float(tau.mean()))
        if len(evidence) > 2 and evidence[-1] - evidence[-2] < SETTLED * (
            evidence[-1] - evidence[0]
        ):
            break
    if guess is not None:
        slope = guess.slope.cpu().numpy()
    return Prior(tau.cpu().numpy(), slope, evidence)


class _Guess:
    """The prior mean ``slope · scores`` of some targets while the slopes are being learnt."""

    def __init__(
        self, problem: Problem, scores: NDArray[np.float64], groups: NDArray[np.int64] | None
    ) -> None:
        self._problem = problem
        self._scores = torch.as_tensor(scores, device=problem.device)
        index = np.zeros(problem.num_active, np.int64) if groups is None else groups
        self._index = torch.as_tensor(index, device=problem.device)
        self.slope = self._scores.new_zeros(problem.num_active)

    @property
    def mean(self) -> torch.Tensor:
        """The prior mean, float64 [M, t]."""
        return self.slope[:, None] * self._scores

    def unexplained(self, c: torch.Tensor, yy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return covariances [M, t] and variances [t] of what the mean does not explain."""
        mean = self.mean
        product = self._problem.times_gram(mean)
        return c - product, yy - (mean * (2 * c - product)).sum(0)

    def improve(self, change: torch.Tensor, tau: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Set each group's slope to its best; returns the posterior's distance to the new mean.

        The M step: least squares of the posterior mean on the scores, with weights 1/(τ σ²).
        """
        posterior = self.mean + change
        share = self._scores / noise
        above = (share * posterior).sum(1) / tau
        below = (share * self._scores).sum(1) / tau
        sums = above.new_zeros(2, int(self._index.max()) + 1)
        sums[0].index_add_(0, self._index, above)
        sums[1].index_add_(0, self._index, below)
        slope = torch.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1e-300), sums[0] * 0)
        self.slope = slope[self._index]
        return posterior - self.mean


def _towards_groups(tau: torch.Tensor, groups: NDArray[np.int64], share: float) -> torch.Tensor:
    """Mix each variance with the mean of its group."""
    index = torch.as_tensor(groups, device=tau.device)
    count = int(index.max()) + 1
    sums = tau.new_zeros(count).index_add_(0, index, tau)
    sizes = tau.new_zeros(count).index_add_(0, index, torch.ones_like(tau))
    return (1 - share) * tau + share * (sums / sizes.clamp_min(1))[index]


def save_prior_scores(
    path: str | Path, scores: NDArray[Any], groups: NDArray[np.int64], forward_passes: float
) -> None:
    """Write scores [N, T], each feature's group [N] and the cost; whole or not at all."""
    with whole_file(Path(path)) as file:
        np.savez(
            file, scores=scores.astype(np.float32), groups=groups, forward_passes=forward_passes
        )


def load_prior_scores(path: str | Path, targets: slice = slice(None)) -> dict[str, Any]:
    """Read scores for a fit: what `save_prior_scores` wrote, or an .npy [N, T] without groups.

    Parameters
    ----------
    path : str or Path
    targets : slice
        Which targets are fitted.

    Returns
    -------
    dict
        ``scores`` [N, t] and, where the file has them, ``groups`` [N] and ``scores_cost`` (its
        ``forward_passes``): options of the solvers that take guesses.

    Raises
    ------
    RegressionError
        If the file cannot be read or holds no such array.
    """
    content = (
        load_npz(path, RegressionError)
        if Path(path).suffix == ".npz"
        else {"scores": load_npy(path, RegressionError)}
    )
    if "scores" not in content or content["scores"].ndim != 2:
        raise RegressionError(f"{path} must hold an array scores [features, targets]")
    kept: dict[str, Any] = {key: content[key] for key in ("scores", "groups") if key in content}
    if PASSES in content:
        if content[PASSES].size != 1 or content[PASSES].dtype.kind not in "iuf":
            raise RegressionError(f"{path} must hold one number of {PASSES}")
        kept["scores_cost"] = content[PASSES].item()
    return kept | {"scores": content["scores"][:, targets]}

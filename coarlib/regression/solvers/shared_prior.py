"""Shared-prior ridge: one prior variance per feature, learnt from all targets together.

Targets of one model share which components matter at all. With ``w_t ~ N(0, σ_t² diag(τ))`` the
prior variances τ are fitted by maximum likelihood (empirical Bayes): given τ, every target has the
posterior of a ridge regression and all share one factorisation; given the posteriors,
``τ_j`` becomes the mean over targets of ``E[w_jt²] / σ_t²`` (an EM step). Components that matter to
nobody are shrunk away, which on real rows halves the ablations needed for a given held-out
correlation. Where the truth is dense and targets share nothing it is worse than plain ridge, so
choose on held-out rows (:class:`~coarlib.regression.solvers.auto.Auto`), never by hope.

A last step scales τ by cross-validation: one ridge path in features multiplied by √τ.

Where cheap guesses of the weights exist (gradients: a few passes over the examples), the prior
mean is a multiple of them, learnt for each group of features in the same EM; guesses that say
nothing get the factor 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.cost import check_passes
from coarlib.regression.problem import Problem, Solution, target_blocks
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.least_squares import nothing_varies
from coarlib.regression.solvers.prior import EM_STEPS, SMALLEST_PRIOR, Prior, learn_prior
from coarlib.regression.solvers.ridge_path import (
    RidgePath,
    decomposition_work,
    lambda_grid,
    pooled_choice,
)

__all__ = ["SharedPrior"]


@dataclass(frozen=True)
class SharedPrior(Solver):
    """Ridge with prior variances shared by all targets.

    Parameters
    ----------
    steps, groups, group_weight
        See :func:`learn_prior`; ``groups`` has one entry for each of the N features here.
    temper : float
        Exponent of the prior: 1 is the learnt one, 0 plain ridge, between them a compromise.
    pooled : bool
        One scale of the prior for all targets (chosen by GCV), else one each.
    prior : Prior or float64 [N], optional
        What :func:`learn_prior` found on the same rows, or prior variances from elsewhere (another
        fit); skips learning.
    scores : float [N, T], optional
        Cheap guesses of the weights (gradients, leave-one-out effects), in raw mask units up to a
        factor, which is learnt for each group: weights are shrunk towards them instead of zero.
    scores_cost : float, optional
        What these (or prior variances from elsewhere) took, in forward passes over the examples.
    """

    name: ClassVar[str] = "shared_prior"
    steps: int = EM_STEPS
    temper: float = 1.0
    groups: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    group_weight: float = 0.0
    pooled: bool = True
    prior: Prior | NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    scores: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    scores_cost: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temper <= 1:
            raise RegressionError(f"temper must be between 0 and 1, not {self.temper}")
        if self.prior is not None and self.scores is not None:
            raise RegressionError("give either prior variances or scores, not both")
        check_passes(self.scores_cost)

    @property
    def prior_passes(self) -> float | None:
        """As given, where scores or another fit's variances are."""
        elsewhere = self.scores is not None or isinstance(self.prior, np.ndarray)
        return self.scores_cost if elsewhere else 0

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``details``: ``evidence`` before the first and after the last step,
            ``effective_features`` (Σ τ)² / Σ τ², and with ``scores`` ``slopes``, one a group.
        """
        guess = None if self.scores is None else _checked_scores(problem, self.scores)
        inner = None if self.groups is None else _checked_groups(problem, self.groups)
        if problem.num_active == 0:
            return nothing_varies(problem)
        found = self._prior(problem, guess, inner)
        tau = found.variance**self.temper
        tau /= tau.mean()
        mean = None if guess is None else found.slope[:, None] * guess
        solution = _ridge_about(problem, mean, tau, self.pooled)
        solution.status = f"shared prior by {len(found.evidence)} EM steps, its scale by GCV"
        solution.details |= {
            "evidence": found.evidence[:1] + found.evidence[-1:],
            "effective_features": float(tau.sum() ** 2 / (tau**2).sum()),
            "temper": self.temper,
        }
        if mean is not None:
            solution.status += ", about the given scores"
            first = np.unique(np.zeros(1) if inner is None else inner, return_index=True)[1]
            solution.details["slopes"] = found.slope[first].tolist()
        return solution

    def _prior(
        self, problem: Problem, guess: NDArray[np.float64] | None, inner: NDArray[np.int64] | None
    ) -> Prior:
        if self.prior is not None:
            return _checked_prior(problem, self.prior)
        if guess is not None or inner is not None:
            return learn_prior(
                problem,
                steps=self.steps,
                groups=inner,
                group_weight=self.group_weight,
                scores=guess,
            )
        # Several solvers of one problem learn it once.
        key = ("prior", self.steps)
        return problem.remembered(key, lambda: learn_prior(problem, steps=self.steps))

    def work(self, size: Size) -> float:
        """EM steps, of which each is about a ridge fit, and one decomposition."""
        learning = 2.0 * size.side**3 + 2.0 * size.side * size.features * min(size.targets, 1024)
        return decomposition_work(size) + self.steps * learning


def _ridge_about(
    problem: Problem, mean: NDArray[np.float64] | None, tau: NDArray[np.float64], pooled: bool
) -> Solution:
    """Ridge with prior variances ∝ τ about standardised weights [M, T] (zero if None)."""
    centred = problem
    if mean is not None:
        mean[:, problem.variance == 0] = 0
        shift = torch.as_tensor(mean, device=problem.device)
        centred = problem.less(shift)
    path = RidgePath(centred.reweighted(np.sqrt(tau)))
    grid = lambda_grid()
    lam = pooled_choice(path, grid) if pooled else grid[np.argmin(path.gcv_all(grid), axis=0)]
    solution = path.solution(lam, "")
    if mean is not None:
        for targets in target_blocks(problem.num_targets):
            raw = problem.raw_weight(shift[:, targets])
            solution.weight[:, targets] += raw
            solution.bias[targets] -= problem.moments.mean_mask @ raw
        yy = problem.variance
        share = np.divide(centred.variance, yy, out=np.zeros_like(yy), where=yy > 0)
        solution.gap *= share  # the certificate is relative to the whole variance
    return solution


def _checked_prior(problem: Problem, prior: Prior | NDArray[np.float64]) -> Prior:
    """Return the prior of the active features; what was learnt here already is that."""
    if isinstance(prior, Prior):
        if prior.variance.shape != (problem.num_active,):
            raise RegressionError(
                f"this prior was learnt for {len(prior.variance)} features that vary; here "
                f"{problem.num_active} do"
            )
        return prior
    if prior.shape != (problem.moments.num_features,) or not (prior >= 0).all():
        raise RegressionError(
            f"prior must be {problem.moments.num_features} variances that are not negative"
        )
    tau = np.maximum(prior[problem.active], SMALLEST_PRIOR * prior.max(initial=1e-300))
    return Prior(tau, np.zeros(len(tau)), [])


def _checked_groups(problem: Problem, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.shape != (problem.moments.num_features,) or groups.dtype.kind not in "iu":
        raise RegressionError(
            f"groups must be one integer for each of the {problem.moments.num_features} features"
        )
    return np.unique(groups[problem.active], return_inverse=True)[1].astype(np.int64)


def _checked_scores(problem: Problem, scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return scores [N, T] in units of the standardised weights of active features, [M, T]."""
    shape = (problem.moments.num_features, problem.num_targets)
    if scores.shape != shape or scores.dtype.kind not in "fiu":
        raise RegressionError(
            f"scores must be numbers for {shape[0]} features × {shape[1]} targets, not "
            f"{scores.dtype} {list(scores.shape)}"
        )
    guess = scores[problem.active].astype(np.float64)
    if not np.isfinite(guess).all():
        raise RegressionError("scores hold NaN or infinite values")
    return np.asarray(guess * problem.scale[:, None])

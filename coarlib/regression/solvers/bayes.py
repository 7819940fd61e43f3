"""One Bayesian linear model for all evidence: gradient passes, guesses of the weights, rows.

Gradient passes observe every weight and, by their outputs, sums of them; rows observe sums; guesses
(plain gradients, leave-one-out effects) are what the prior is about, times a multiple for every
group that is learnt. Without gradient passes the model is that of
:class:`~coarlib.regression.solvers.shared_prior.SharedPrior`, which is used then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.gradient_passes import PassSums, Trials
from coarlib.regression.bayes import BayesFit, Evidence, fit_evidence
from coarlib.regression.bayes.observations import Observations
from coarlib.regression.cost import check_passes
from coarlib.regression.dual import DualProblem
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.rows.blocks import finite_blocks
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.shared_prior import SharedPrior

__all__ = ["Bayes"]

TARGETS_A_FACTOR = 4
DRAWS, MOST_DRAWN = 32, 2**26


@dataclass(frozen=True)
class Bayes(Solver):
    """Posterior means of the weights given all evidence, with posterior standard deviations.

    Parameters
    ----------
    passes : PassSums, optional
        Gradient passes of the same targets (:func:`coarlib.gradient_passes.read_passes`); a fit of
        a store takes those that it has.
    scores : float [N, T] or [S, N, T], optional
        Guesses of the weights, in raw mask units up to a factor, which is learnt for each group.
    groups : int64 [N], optional
        Group (layer) of each component.
    factors : int
        How many ways in which targets are alike are learnt; fewer of few targets.
    rounds : int
        How often prior and outputs are joined.
    scores_cost : float, optional
        What the scores took, in forward passes over the examples.
    draws : int
        Draws from the posterior that are kept for errors of sets of weights, where they are not
        too many numbers (2²⁶).
    trials : Trials, optional
        Of the same targets; they are used with gradient passes only.
    """

    name: ClassVar[str] = "bayes"
    passes: PassSums | None = field(default=None, compare=False, repr=False)
    scores: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    groups: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    factors: int = 10
    rounds: int = 3
    scores_cost: float | None = None
    draws: int = DRAWS
    trials: Trials | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.factors < 1 or self.rounds < 1:
            raise RegressionError(
                f"at least one factor and one round are needed, not {self.factors} and "
                f"{self.rounds}"
            )
        check_passes(self.scores_cost)

    @property
    def prior_passes(self) -> float | None:
        """Those of the gradient passes, the trials and the scores."""
        passes = sum(x.forward_passes for x in (self.passes, self.trials) if x is not None)
        if self.scores is None:
            return passes
        return None if self.scores_cost is None else passes + self.scores_cost

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``details``: ``gradient_passes``, ``noise`` (variance that the linear model leaves
            unexplained, relative to the outputs', of rows, passes and trials), ``multiples`` of the
            guesses [groups, S], ``errors_by_round``.
        """
        if self.passes is None:
            guesses = None if self.scores is None else _stack(self.scores).sum(0)
            same = SharedPrior(scores=guesses, groups=self.groups, scores_cost=self.scores_cost)
            return same.solve(problem)
        passes = _checked(self.passes, problem)
        guesses = None if self.scores is None else _stack(self.scores)
        own: list[Trials] = [passes] if self.trials is None else [passes, self.trials]
        scale = _scale(problem, own)
        outputs = _outputs(problem, own, scale)
        evidence = Evidence.of(passes, guesses, self.groups, scale, problem.device)
        factors = max(1, min(self.factors, problem.num_targets // TARGETS_A_FACTOR))
        few = self.draws * passes.num_features * passes.num_targets <= MOST_DRAWN
        draws = self.draws if few else 0
        found = fit_evidence(outputs, evidence, factors, self.rounds, draws)
        solution = _solution(problem, found, passes, scale)
        if self.trials is not None:  # they tell of the level as well as rows do
            rows, trials = problem.num_rows, len(self.trials.passes)
            level = outputs.trial_level(solution.weight.astype(np.float64))
            solution.bias = (rows * solution.bias + trials * level) / (rows + trials)
        return solution

    def work(self, size: Size) -> float:
        """A matrix of rows, or of features, for each target and round."""
        side, features = float(size.side), float(size.features)
        each = 2 * side**2 * features + side**3
        return (2 + self.rounds) * size.targets * each if self.passes is not None else 0.0

    def memory(self, size: Size) -> float:
        """Some twenty arrays [N, T]."""
        return 20 * 8.0 * size.features * size.targets


def _stack(scores: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(scores if scores.ndim == 3 else scores[None], np.float64)


def _checked(passes: PassSums, problem: Problem) -> PassSums:
    shape = (problem.moments.num_features, problem.num_targets)
    if (passes.num_features, passes.num_targets) != shape:
        raise RegressionError(
            f"the gradient passes are of {passes.num_features} components and "
            f"{passes.num_targets} targets, the rows of {shape[0]} and {shape[1]}"
        )
    return passes


def _scale(problem: Problem, own: list[Trials]) -> NDArray[np.float64]:
    """Return the standard deviation of each target's outputs, [T]."""
    counts = [problem.num_rows, *(len(x.passes) for x in own)]
    variances = [problem.variance, *(x.outputs.var(0) for x in own)]
    variance = np.average(variances, axis=0, weights=counts)
    return np.sqrt(np.where(variance > 0, variance, 1.0))


def _outputs(problem: Problem, own: list[Trials], scale: NDArray[np.float64]) -> Observations:
    """Return the rows' centred moments (primal) or masks (dual), in units of the scale."""
    n, device = problem.num_rows, problem.device
    shape = (problem.moments.num_features, problem.num_targets)
    unit = torch.as_tensor(scale, device=device)
    spread = torch.as_tensor(problem.scale, device=device)[:, None]
    active = torch.as_tensor(problem.active, device=device)
    cross = torch.zeros(shape, dtype=torch.float64, device=device)
    cross[active] = n * spread * problem.covariance() / unit
    square = torch.as_tensor(n * problem.variance / scale**2, device=device)
    if not isinstance(problem, DualProblem):
        gram = torch.zeros(shape[0], shape[0], dtype=torch.float64, device=device)
        gram[active[:, None], active] = n * problem.gram * spread * spread.T
        return Observations(n, cross, square, gram=gram, own=own, scale=scale)
    if problem.source is None:
        raise RegressionError("the dual form reads the rows again: fit rows, not their moments")
    found = list(finite_blocks(problem.source, problem.positions))
    masks = torch.from_numpy(np.concatenate([x for x, _ in found])).to(device).double()
    values = np.concatenate([y for _, y in found]).astype(np.float64) / scale
    outputs = torch.from_numpy(values).to(device)
    return Observations(
        n,
        cross,
        square,
        masks=masks - masks.mean(0),
        outputs=outputs - outputs.mean(0),
        own=own,
        scale=scale,
    )


def _solution(
    problem: Problem, found: BayesFit, passes: PassSums, scale: NDArray[np.float64]
) -> Solution:
    solution = Solution.empty(problem, "")
    count = len(passes.passes)
    solution.status = (
        f"posterior of {count} gradient passes and {problem.num_rows} rows, joined in "
        f"{len(found.errors)} rounds"
    )
    raw = found.weights.mean.cpu().numpy() * scale
    solution.weight = raw.astype(np.float32)
    solution.bias = problem.moments.mean_output - problem.moments.mean_mask @ raw
    solution.gap[:] = np.nan  # it minimises nothing, so nothing is certified
    solution.error_feature = found.weights.variance.sqrt().cpu().numpy() * scale
    solution.draws = None if found.draws is None else found.draws.cpu().numpy()
    solution.details |= {
        "gradient_passes": count,
        "noise": found.noise.cpu().tolist(),
        "multiples": found.multiples.cpu().tolist(),
        "errors_by_round": found.errors,
        "errors": "posterior standard deviations",
    }
    return solution

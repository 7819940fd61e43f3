"""Joining evidence: what passes say of single weights, and what outputs say of their sums.

Slopes on paths observe single weights, with one noise variance a component; given those, the
prior that targets share has an exact posterior and is learnt by EM. Outputs of rows and passes
observe sums of weights, target by target. Neither alone is all: expectation propagation passes what
the outputs say of every weight (a precision and a mean) back to the prior, which learns from it,
and the outputs are taken again with what the prior says without them. Noise variances of outputs
are the residual sums over their degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.gradient_passes import PassSums
from coarlib.regression.bayes.factors import FactorPrior, Marginals
from coarlib.regression.bayes.mean import PriorMean
from coarlib.regression.bayes.observations import Observations, Posterior

__all__ = ["BayesFit", "Evidence", "fit_evidence"]

FIRST_STEPS, LATER_STEPS = 15, 6  # of EM, before and after outputs have told of the weights
FIRST_NOISE, LATER_NOISE = 3, 1
KEPT_BEFORE = 0.3  # share of the last message that is kept: undamped ones can swing
SMALLEST = 1e-12
WORSE = 1.02  # rounds end where the cross-validated error grows by this


@dataclass(frozen=True)
class Evidence:
    """What is known besides outputs, in units of each target's scale.

    Attributes
    ----------
    sums, squares, counts : float64 [N, T]
        Σ g, Σ g² over the passes in which a component is on a path, and their number.
    guesses : float64 [S, N, T]
        Guesses of the weights, up to a factor a group.
    groups : int64 [N]
    """

    sums: torch.Tensor
    squares: torch.Tensor
    counts: torch.Tensor
    guesses: torch.Tensor
    groups: torch.Tensor

    @classmethod
    def of(
        cls,
        passes: PassSums,
        guesses: NDArray[np.float64] | None,
        groups: NDArray[np.int64] | None,
        scale: NDArray[np.float64],
        device: torch.device,
    ) -> Evidence:
        """Put passes and further guesses [S, N, T] together."""

        def tensor(values: NDArray[np.float32], power: int = 1) -> torch.Tensor:
            return torch.as_tensor(values.astype(np.float64) / scale**power, device=device)

        every = [tensor(passes.kept_means)]
        if guesses is not None:
            every += [tensor(guess) for guess in guesses]
        where = np.zeros(passes.num_features, np.int64) if groups is None else groups
        return cls(
            tensor(passes.path_sums),
            tensor(passes.path_squares, 2),
            tensor(passes.path_counts, 0),
            torch.stack(every),
            torch.as_tensor(np.unique(where, return_inverse=True)[1], device=device),
        )


@dataclass
class BayesFit:
    """The posterior, and what was learnt on the way.

    Attributes
    ----------
    weights : Marginals
    prior : FactorPrior
    multiples : float64 [groups, S]
        Of the guesses.
    noise : float64 [kinds]
        Variance of what the linear model does not explain, of rows, passes and trials.
    draws : float16 [K, N, T] or None
        Weights less their mean, drawn from the posterior, in units of its standard deviations.
    errors : list of float
        Generalised cross-validation, by round.
    """

    weights: Marginals
    prior: FactorPrior
    multiples: torch.Tensor
    noise: torch.Tensor
    draws: torch.Tensor | None = None
    errors: list[float] = field(default_factory=list)


class _Slopes:
    """The slopes on paths as observations of single weights, with the noise learnt so far."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.mean = evidence.sums / evidence.counts.clamp_min(1)
        self.noise = evidence.sums.new_ones(len(self.mean))

    def start(self, centre: torch.Tensor) -> torch.Tensor:
        """Set the noise, and return prior variances [N], by the method of moments."""
        e = self.evidence
        left = e.sums - e.counts * centre
        squares = e.squares - 2 * e.sums * centre + e.counts * centre.square()
        pairs = (e.counts * (e.counts - 1)).sum(1).clamp_min(1)
        total = e.counts.sum(1).clamp_min(1)
        least = 1e-3 * float((e.squares.sum(1) / total).mean()) + SMALLEST
        variance = ((left.square() - squares).sum(1) / pairs).clamp_min(least)
        self.noise = (squares.sum(1) / total - variance).clamp_min(SMALLEST)
        return variance

    @property
    def precision(self) -> torch.Tensor:
        return self.evidence.counts / self.noise[:, None]

    def learn(self, found: Marginals) -> None:
        """Set the noise to the mean square distance of slopes from the weights."""
        e = self.evidence
        second = found.mean.square() + found.variance
        squares = e.squares - 2 * e.sums * found.mean + e.counts * second
        self.noise = (squares.sum(1) / e.counts.sum(1).clamp_min(1)).clamp_min(SMALLEST)


@dataclass(frozen=True)
class _Message:
    """What outputs say of each weight: a precision, and the mean times it, [N, T]."""

    precision: torch.Tensor
    pull: torch.Tensor


def fit_evidence(
    outputs: Observations, evidence: Evidence, factors: int = 10, rounds: int = 3, draws: int = 0
) -> BayesFit:
    """Return the posterior of the weights.

    Parameters
    ----------
    outputs : Observations
    evidence : Evidence
    factors : int
        Loadings of a target, q; at least one.
    rounds : int
        How often outputs and prior are joined, at most.
    draws : int
        From the posterior, K.
    """
    slopes, mean = _Slopes(evidence), PriorMean(evidence.guesses, evidence.groups)
    centre = mean.fit(evidence.counts, slopes.mean)
    prior = FactorPrior.start(slopes.start(centre), outputs.num_targets, factors)
    nothing = torch.zeros_like(slopes.mean)
    message = _Message(nothing, nothing)
    noise = nothing.new_full((len(outputs.counts), outputs.num_targets), 0.5)
    best: BayesFit | None = None
    errors: list[float] = []
    for turn in range(rounds):
        for _ in range(LATER_STEPS if turn else FIRST_STEPS):
            precision = slopes.precision + message.precision
            seen = (slopes.precision * slopes.mean + message.pull) / precision.clamp_min(SMALLEST)
            spread = (prior.variance[:, None] * prior.total) * precision + 1
            centre = mean.fit(precision / spread, seen)
            found, prior = prior.step(centre, precision, seen)
            slopes.learn(found)
        without = _less(found, message)
        for again in reversed(range(FIRST_NOISE if not turn else LATER_NOISE)):
            used = noise
            posterior = outputs.posterior(without, noise)
            noise = _noise(posterior, outputs) if again or turn else noise
        errors.append(_cross_validated(posterior, outputs))
        if best is not None and not errors[-1] < WORSE * min(errors[:-1]):
            break
        best = BayesFit(posterior.weights, prior, mean.multiples, noise.mean(1), errors=errors)
        last = without, used
        message = _mixed(message, _between(without, posterior.weights), KEPT_BEFORE if turn else 0)
    if best is None:
        raise ValueError("at least one round is needed")
    if draws:
        best.draws = outputs.draws(*last, draws)
    return best


def _less(found: Marginals, message: _Message) -> Marginals:
    """Take a message out of a posterior."""
    precision = 1 / found.variance
    left = torch.maximum(precision - message.precision, 1e-3 * precision)
    return Marginals((found.mean * precision - message.pull) / left, 1 / left)


def _between(before: Marginals, after: Marginals) -> _Message:
    precision = (1 / after.variance - 1 / before.variance).clamp_min(SMALLEST)
    return _Message(precision, after.mean / after.variance - before.mean / before.variance)


def _mixed(old: _Message, new: _Message, share: float) -> _Message:
    return _Message(
        share * old.precision + (1 - share) * new.precision,
        share * old.pull + (1 - share) * new.pull,
    )


def _noise(found: Posterior, outputs: Observations) -> torch.Tensor:
    """Residual sums over degrees of freedom, pooled over targets, [kinds, T]."""
    pooled = found.errors.sum(1) / found.freedom.sum(1).clamp_min(1e-9)
    counts = pooled.new_tensor(outputs.counts)
    pooled = torch.where(counts > 1, pooled.clamp_min(SMALLEST), torch.ones_like(pooled))
    return pooled[:, None].expand(-1, outputs.num_targets).clone()


def _cross_validated(found: Posterior, outputs: Observations) -> float:
    """Generalised cross-validation a row, over all kinds of outputs."""
    counts = found.errors.new_tensor(outputs.counts)
    used = counts > 1
    freedom = found.freedom.sum(1).clamp_min(1e-9) / outputs.num_targets
    each = found.errors.sum(1) / outputs.num_targets * counts.square() / freedom.square()
    return float(each[used].sum() / counts[used].sum().clamp_min(1))

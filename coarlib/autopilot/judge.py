"""Fitting what was bought, judging it by cross-validation, forecasting the next purchase.

Trials judge: forward passes in which every example has an ablation of its own. They are cut into
folds; each fold is predicted by a fit of everything else, so that no prediction has seen what it is
judged on, and all of them judge and are fitted. Where the components cannot be scaled, rows do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.autopilot.holdings import Alone, Amounts, Holdings
from coarlib.gradient_passes import PassSums, Trials
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.regression import Attributions, RowSource
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.heldout import HeldOut, score_arrays
from coarlib.regression.problem import target_blocks
from coarlib.regression.rows.blocks import read_blocks
from coarlib.regression.solvers import Bayes, SharedPrior, Solver
from coarlib.regression.split import Split
from coarlib.regression.tables import layers_of
from coarlib.statistics.influence import jackknife_bias
from coarlib.statistics.intervals import FEWEST_ROWS, standard_error

__all__ = ["Forecast", "Judgement", "Known", "final_fit", "forecast", "judge"]

SOME_TARGETS = 128  # decide: the others say the same
FOLDS = 4
LAST_FOLDS = 8  # where it may stop, and of the score that is told
BIAS = 1.5  # times that of the jackknife: predictions of a trial are fitted to the others
MOST_USED = 0.9  # degrees of freedom a row: beyond it there is nothing to judge by
WIDER = 1.05  # than over fresh trials: folds share what they are fitted on (arXiv:2104.00673)
HALVES_LEFT = 0.6  # of what the last doubling brought, the next one brings
TRY_SHARE = 0.08  # of what was spent may go into trying leave-one-out
TARGETS_AT_ONCE = 64


@dataclass(frozen=True)
class Known:
    """What was bought, for some targets: everything that a fit takes.

    Attributes
    ----------
    source : RowSource
    rows : int64 [n]
        Positions in it.
    passes : PassSums or None
    trials : Trials or None
    alone : Alone or None
    layers : int64 [N]
    """

    source: RowSource
    rows: NDArray[np.int64]
    passes: PassSums | None
    trials: Trials | None
    alone: Alone | None
    layers: NDArray[np.int64]

    @classmethod
    def of(cls, holdings: Holdings, amounts: Amounts, targets: slice) -> Known:
        """Read so much of what was bought."""
        return cls(
            holdings.rows(targets),
            holdings.positions(amounts.rows),
            holdings.passes(amounts.passes, targets),
            holdings.trials(amounts.trials, targets),
            holdings.alone(targets) if amounts.alone else None,
            layers_of(holdings.task.component_set.to_json()),
        )

    def fit(self, device: torch.device | str = "cpu", draws: int = 0) -> Attributions:
        """Fit everything, with so many draws from the posterior."""
        quietly = FitOptions(
            device=torch.device(device), quiet=True, with_curve=False, say=lambda line: None
        )
        split = Split(self.rows, np.zeros(0, np.int64))
        return fit_and_score(self.source, split, self._solver(draws), quietly)

    def _solver(self, draws: int) -> Solver:
        own = Bayes(passes=self.passes, trials=self.trials, groups=self.layers, draws=draws)
        if self.alone is None:
            return SharedPrior() if self.passes is None else own
        # Where a component was left out, other guesses count for less: a multiple of their own.
        groups = 2 * self.layers + self.alone.known
        return replace(own, scores=self.alone.effect, groups=groups, scores_cost=self.alone.cost)

    def some(self, chosen: NDArray[np.bool_]) -> Known:
        """Return the same with some of what judges."""
        if self.trials is None:
            return replace(self, rows=self.rows[chosen])
        return replace(self, trials=self.trials.some(chosen) if chosen.any() else None)

    @property
    def count(self) -> int:
        """How many trials, or rows, judge."""
        return len(self.rows) if self.trials is None else len(self.trials.passes)

    @cached_property
    def share(self) -> float:
        """Share of the components that a trial, or a row, ablates."""
        if self.trials is not None:
            return self.trials.plan.fraction
        kept = [int(masks.sum()) for _, masks, _ in read_blocks(self.source, self.rows)]
        return 1 - sum(kept) / max(1, len(self.rows) * len(self.layers))

    @property
    def tails(self) -> float:
        """Excess kurtosis of how many components a trial ablates: large where that is few.

        Then a few trials are most of a correlation, and tell too little of its error.
        """
        share, wide = self.share, len(self.layers)
        if not 0 < share < 1:
            return 0.0
        return max(0.0, (1 - 6 * share * (1 - share)) / (wide * share * (1 - share)))

    @property
    def telling(self) -> float:
        """How many trials, or rows, tell of errors: where something is ablated, less for tails."""
        whole = (1 - self.share) ** len(self.layers)
        return self.count * (1 - whole) / (1 + self.tails)

    def judged(
        self,
        fitted: NDArray[np.bool_] | None = None,
        device: torch.device | str = "cpu",
        num_folds: int = FOLDS,
    ) -> _Judged:
        """Score predictions of every trial (or row) by fits of the others.

        A fold's fit lacks what it judges, so that scores are a little low.

        Parameters
        ----------
        fitted : bool [count], optional
            Those that may be fitted; all by default. Where none is, one fit predicts them all.
        device : torch.device or str
        num_folds : int
        """
        fitted = np.ones(self.count, bool) if fitted is None else fitted
        folds = np.arange(self.count) % (num_folds if fitted.any() else 1)
        # Many small factorisations leave torch's own threads idle: folds are fitted side by side.
        threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
        with ThreadPoolExecutor(threads) as pool:
            parts = [self.some(fitted & (folds != fold)) for fold in np.unique(folds)]
            fits = list(pool.map(lambda part: part.fit(device), parts))
        summary = fits[-1].summary
        noise = summary.get("noise", [float("nan")])[-1]
        used = min(summary.get("degrees_of_freedom", 0) / summary["num_rows"], MOST_USED)
        pairs = self._predictions([fit.weight for fit in fits], folds)
        scores = score_arrays(*pairs)
        if self.telling < FEWEST_ROWS:
            scores = scores.without_intervals()
        return _Judged(scores, noise, used, pairs)

    def told(self, device: torch.device | str = "cpu", few: HeldOut | None = None) -> HeldOut:
        """Score the fit of everything, by cross-validation.

        Fits of folds lack a part: what eight folds bring beyond four is continued to all. And a
        correlation over few trials is too small (``benchmarks/coverage_attribute.py``).

        Parameters
        ----------
        device : torch.device or str
        few : HeldOut, optional
            The scores of four folds, where they are known.
        """
        few = few or self.judged(device=device).scores
        many = self.judged(device=device, num_folds=LAST_FOLDS)
        share = np.log(1 - 1 / LAST_FOLDS) / np.log((1 - 1 / FOLDS) / (1 - 1 / LAST_FOLDS))
        gain = many.scores.mean - few.mean
        influence = many.scores.influence + share * (many.scores.influence - few.influence)
        # A single trial that is most of a correlation makes a bias of any size: it is only noise.
        error = float(standard_error(many.scores.influence))
        most = error if np.isfinite(error) else (1 - many.scores.mean**2) / np.sqrt(self.count)
        bias = float(np.clip(BIAS * many.bias, -most, most))
        wider = many.wider if self.trials is None else WIDER
        told = many.scores.shifted(share * gain - bias, wider * np.sqrt(1 + self.tails) * influence)
        return told if self.trials is None else replace(told, unit="trials")

    def _predictions(
        self, weights: list[NDArray[np.float32]], folds: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictions and outputs [count, T]."""
        if self.trials is not None:
            return self._predicted(self.trials, weights, folds), self.trials.outputs
        found = list(read_blocks(self.source, self.rows))
        masks = np.concatenate([x for _, x, _ in found])
        outputs = np.concatenate([y for *_, y in found]).astype(np.float64)
        each = [(masks - masks.mean(0)) @ weight.astype(np.float64) for weight in weights]
        return np.choose(folds[:, None], each), outputs

    def _predicted(
        self, trials: Trials, weights: list[NDArray[np.float32]], folds: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Predictions of trials up to a constant a target, each by the weights of its fold."""
        found = np.empty(trials.outputs.shape)
        for block in target_blocks(trials.num_targets, TARGETS_AT_ONCE):
            masks = trials.masks(block, len(self.layers)) - np.float32(1 - trials.plan.fraction)
            for fold, weight in enumerate(weights):
                held = folds == fold
                found[held, block] = np.einsum("tkn,nt->kt", masks[:, held], weight[:, block])
        return found


@dataclass(frozen=True)
class _Judged:
    """What cross-validation found.

    Attributes
    ----------
    scores : HeldOut
    noise : float
        Variance that the linear model leaves unexplained, relative; NaN if unknown.
    used : float
        Degrees of freedom a row that a fit takes from the rows that judge.
    pairs : float64 [count, T] each
        Predictions and outputs.
    """

    scores: HeldOut
    noise: float
    used: float
    pairs: tuple[NDArray[np.float64], NDArray[np.float64]] = field(repr=False)

    @property
    def wider(self) -> float:
        """How much wider an interval is than over fresh rows, where rows are fitted and judge.

        With h degrees of freedom a row, residuals left out are those of the fit over 1 - h: the
        mean of n of their squares varies as that of n (1 - h) does. How lucky the fit is itself,
        which they do not tell, varies by h more (arXiv:2104.00673).
        """
        return float(np.sqrt(1 / (1 - self.used) + self.used))

    @property
    def bias(self) -> float:
        """Of the mean correlation, by the jackknife."""
        predictions, outputs = self.pairs
        varies = (np.ptp(predictions, axis=0) > 0) & (np.ptp(outputs, axis=0) > 0)
        if len(outputs) < 3 or not varies.any():
            return 0.0
        return float(jackknife_bias(predictions[:, varies].T, outputs[:, varies].T).mean())


@dataclass(frozen=True)
class Judgement:
    """How good what is there is.

    Attributes
    ----------
    amounts : Amounts
    scores : HeldOut
        By cross-validation, of some targets.
    ceiling : float
        Correlation that no linear model exceeds, by the noise that is left; NaN if unknown.
    """

    amounts: Amounts
    scores: HeldOut
    ceiling: float
    known: Known = field(repr=False)


@dataclass(frozen=True)
class Forecast:
    """What the next purchases would bring.

    Attributes
    ----------
    passes, trials, rows : float
        Gain in correlation if there were twice as many; minus infinity where none are bought.
    alone : float
        Gain if every component was left out alone; NaN if that is to be tried on some of them,
        minus infinity if there is nothing to gain.
    missing : float
        What the judged correlation lacks because a fold's fit does without the fold.
    """

    passes: float = -np.inf
    trials: float = -np.inf
    rows: float = -np.inf
    alone: float = -np.inf
    missing: float = 0.0

    @property
    def best(self) -> float:
        """The largest of the gains; NaN if one is to be tried."""
        return float(np.max([self.passes, self.trials, self.rows, self.alone]))


def judge(holdings: Holdings, amounts: Amounts) -> Judgement:
    """Cross-validate the fit of some targets by what is there."""
    known = Known.of(holdings, amounts, _some(holdings))
    found = known.judged()
    return Judgement(amounts, found.scores, float(np.sqrt(np.maximum(0.0, 1 - found.noise))), known)


def _continued(gain: float, between: tuple[float, float], now: float, more: float) -> float:
    """Continue a gain between two costs to what more would bring now.

    Each doubling of what is spent, for whatever, brings ``HALVES_LEFT`` of the one before.
    """

    def share(start: float, end: float) -> float:
        return 1 - float(HALVES_LEFT ** np.log2(end / start))

    ahead = (1 - share(between[0], now)) * share(now, now + more)
    return gain * ahead / share(*between)


def _some(holdings: Holdings) -> slice:
    """Targets that are enough to decide."""
    return slice(0, None, max(1, holdings.task.num_examples // SOME_TARGETS))


def forecast(holdings: Holdings, now: Judgement) -> Forecast:
    """Judge less than what is there, and continue what that tells."""
    known, amounts = now.known, now.amounts
    if known.passes is None:
        half = np.arange(known.count) // FOLDS % 2 == 0
        gain = now.scores.mean - known.judged(half).scores.mean
        rows = _continued(gain, (known.count / 2, known.count), known.count, known.count)
        return Forecast(rows=rows, alone=_gain_alone(holdings, now, now.scores, None))
    nothing = np.zeros(known.count, bool)  # all trials judge one fit
    base = known.judged(nothing).scores
    fewer = replace(known, passes=holdings.passes(amounts.passes // 2, _some(holdings)))
    half = replace(amounts, passes=amounts.passes // 2, trials=0).cost
    spent, without = amounts.cost, amounts.cost - amounts.trials
    gain = base.mean - fewer.judged(nothing).scores.mean
    passes = _continued(gain, (half, without), spent, PASS_COST * amounts.passes)
    fitted = without + amounts.trials * (1 - 1 / FOLDS)
    gain = now.scores.mean - base.mean
    trials = _continued(gain, (without, fitted), spent, amounts.trials)
    missing = _continued(gain, (without, fitted), fitted, spent - fitted)
    alone = _gain_alone(holdings, now, base, nothing)
    return Forecast(passes, trials, alone=alone, missing=missing)


def _gain_alone(
    holdings: Holdings, now: Judgement, scores: HeldOut, fitted: NDArray[np.bool_] | None
) -> float:
    """What leaving out the other components would bring, by what the first ones brought.

    Less two standard errors: all of them are bought at once, so chance must not decide.
    """
    left_out, whole = now.amounts.alone, holdings.components
    if not left_out:
        trial = Amounts(0, 0, len(holdings.tried()))
        return float("nan") if trial.cost <= TRY_SHARE * now.amounts.cost else -np.inf
    if left_out == whole:
        return -np.inf
    before = replace(now.known, alone=None).judged(fitted).scores
    sure = scores.mean - before.mean
    differing = scores.influence - before.influence
    if np.isfinite(differing).all() and len(differing) > 1:
        sure -= 2 * float(differing.std(ddof=1) / np.sqrt(len(differing)))
    return sure * (whole - left_out) / left_out


def final_fit(holdings: Holdings, amounts: Amounts, device: torch.device) -> Attributions:
    """Fit all targets by all that was bought, scored by cross-validation."""
    known = Known.of(holdings, amounts, slice(None))
    found = known.fit(device, Bayes.draws)
    found.held_out = known.told(device)
    return found

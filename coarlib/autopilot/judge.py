"""Fitting what was bought, judging it on rows kept aside, forecasting the next purchase."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.autopilot.holdings import Alone, Amounts, Holdings
from coarlib.gradient_passes import PassSums
from coarlib.regression import Attributions
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.heldout import HeldOut, score_rows
from coarlib.regression.solvers import Bayes, SharedPrior, Solver
from coarlib.regression.split import Split
from coarlib.regression.tables import layers_of

__all__ = ["Forecast", "Judgement", "final_fit", "forecast", "judge"]

SOME_TARGETS = 96  # decide: the others say the same
LEAST_ROWS = 8  # to fit
HALVES_LEFT = 0.6  # of what the last doubling brought, the next one brings
TRY_SHARE = 0.1  # of what was spent may go into trying leave-one-out


@dataclass(frozen=True)
class Judgement:
    """How good what is there is.

    Attributes
    ----------
    amounts : Amounts
    scores : HeldOut
        On the rows kept aside.
    ceiling : float
        Correlation that no linear model exceeds, by the noise that is left; NaN if unknown.
    found : Attributions
        What was judged: of some targets, without the rows kept aside.
    """

    amounts: Amounts
    scores: HeldOut
    ceiling: float
    found: Attributions = field(repr=False)


@dataclass(frozen=True)
class Forecast:
    """What the next purchases would bring.

    Attributes
    ----------
    passes, rows : float
        Gain in correlation if there were twice as many; NaN if that has to be tried.
    alone : float
        Gain if every component was left out alone; NaN if that is to be tried on some of them,
        minus infinity if there is nothing to gain.
    """

    passes: float
    rows: float
    alone: float = -np.inf


def _solver(
    passes: PassSums | None, alone: Alone | None, layers: NDArray[np.int64], cost: int, draws: int
) -> Solver:
    if alone is None:
        return SharedPrior() if passes is None else Bayes(passes=passes, groups=layers, draws=draws)
    # Where a component was left out, the other guesses count for less: a multiple of their own.
    groups = 2 * layers + alone.known
    return Bayes(passes=passes, scores=alone.effect, groups=groups, scores_cost=cost, draws=draws)


def _evidence(holdings: Holdings, amounts: Amounts, targets: slice, draws: int) -> Solver:
    passes = holdings.passes(amounts.passes, targets)
    alone = holdings.alone(targets) if amounts.alone else None
    layers = layers_of(holdings.task.component_set.to_json())
    return _solver(passes, alone, layers, Amounts(0, 0, amounts.alone).cost, draws)


def judge(holdings: Holdings, amounts: Amounts, judged_on: int) -> Judgement:
    """Fit some targets by part of what is there, and score them on the rows kept aside.

    Parameters
    ----------
    holdings : Holdings
    amounts : Amounts
        How much of it to use.
    judged_on : int
        The rows kept aside among the first so many judge.
    """
    width = holdings.task.num_examples
    targets = slice(0, None, max(1, width // SOME_TARGETS))
    source = holdings.rows(targets)
    solver = _evidence(holdings, amounts, targets, draws=0)
    alone = Split(holdings.fitted(amounts.rows), np.zeros(0, np.int64))
    found = fit_and_score(source, alone, solver, _quietly("cpu"))
    scores = score_rows(found.predict, source, holdings.judging(judged_on))
    noise = found.summary.get("noise")
    ceiling = float("nan") if not noise else float(np.sqrt(max(0.0, 1 - noise[0])))
    return Judgement(amounts, scores, ceiling, found)


def forecast(holdings: Holdings, now: Judgement) -> Forecast:
    """Judge halves of what is there, on the same rows, and continue what they tell."""
    amounts, rows = now.amounts, now.amounts.rows
    gains = []
    for part in (
        replace(amounts, passes=amounts.passes // 2),
        replace(amounts, rows=rows // 2),
    ):
        if part.passes < 4 < amounts.passes or len(holdings.fitted(part.rows)) < LEAST_ROWS:
            gains.append(float("nan"))
        elif part == amounts:
            gains.append(-np.inf)
        else:
            before = judge(holdings, part, rows).scores.mean
            gains.append(HALVES_LEFT * (now.scores.mean - before))
    return Forecast(gains[0], gains[1], _gain_alone(holdings, now))


def _gain_alone(holdings: Holdings, now: Judgement) -> float:
    """What leaving out the other components would bring, by what the first ones brought.

    Less a standard error: all of them are bought at once, so chance must not decide.
    """
    left_out, whole = now.amounts.alone, holdings.components
    if not left_out:
        trial = Amounts(0, 0, len(holdings.tried()))
        return float("nan") if trial.cost <= TRY_SHARE * now.amounts.cost else -np.inf
    if left_out == whole:
        return -np.inf
    before = judge(holdings, replace(now.amounts, alone=0), now.amounts.rows).scores
    sure = now.scores.mean - before.mean
    differing = now.scores.influence - before.influence
    if np.isfinite(differing).all() and len(differing) > 1:
        sure -= float(differing.std(ddof=1) / np.sqrt(len(differing)))
    return sure * (whole - left_out) / left_out


def final_fit(holdings: Holdings, amounts: Amounts, device: torch.device) -> Attributions:
    """Fit all targets: the score of what was kept aside, the weights of all."""
    solver = _evidence(holdings, amounts, slice(None), Bayes.draws)
    split = Split(holdings.fitted(amounts.rows), holdings.judging(amounts.rows))
    return fit_and_score(holdings.rows(), split, solver, _quietly(device))


def _quietly(device: torch.device | str) -> FitOptions:
    return FitOptions(
        device=torch.device(device), quiet=True, with_curve=False, say=lambda line: None
    )

"""Fitting what was bought, judging it on rows kept aside, forecasting the next purchase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.autopilot.holdings import Amounts, Holdings
from coarlib.gradient_passes import PassSums, read_passes
from coarlib.regression import Attributions, StoreRows
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.heldout import HeldOut, score_rows
from coarlib.regression.solvers import Bayes, SharedPrior, Solver
from coarlib.regression.split import Split
from coarlib.regression.tables import layers_of

__all__ = ["Forecast", "Judgement", "final_fit", "forecast", "judge"]

SOME_TARGETS = 96  # decide: the others say the same
LEAST_ROWS = 8  # to fit
HALVES_LEFT = 0.6  # of what the last doubling brought, the next one brings


@dataclass(frozen=True)
class Judgement:
    """How good what is there is.

    Attributes
    ----------
    amounts : Amounts
    scores : HeldOut
        On the rows kept aside.
    solver : str
    ceiling : float
        Correlation that no linear model exceeds, by the noise that is left; NaN if unknown.
    """

    amounts: Amounts
    scores: HeldOut
    solver: str
    ceiling: float


@dataclass(frozen=True)
class Forecast:
    """What the next purchases would bring.

    Attributes
    ----------
    passes, rows : float
        Gain in correlation if there were twice as many.
    """

    passes: float
    rows: float


def _solver(passes: PassSums | None, groups: NDArray[np.int64] | None) -> Solver:
    return SharedPrior() if passes is None else Bayes(passes=passes, groups=groups)


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
    source = StoreRows(holdings.store, targets=targets)
    passes = read_passes(holdings.store, targets, amounts.passes) if amounts.passes else None
    groups = None if source.components is None else layers_of(source.components)
    rows = holdings.fitted(amounts.rows)
    solver = _solver(passes, groups)
    alone = Split(rows, np.zeros(0, np.int64))
    found = fit_and_score(source, alone, solver, _quietly("cpu"))
    scores = score_rows(found.predict, source, holdings.judging(judged_on))
    noise = found.summary.get("noise")
    ceiling = float("nan") if not noise else float(np.sqrt(max(0.0, 1 - noise[0])))
    return Judgement(amounts, scores, solver.name, ceiling)


def forecast(holdings: Holdings, now: Judgement) -> Forecast:
    """Judge halves of what is there, on the same rows, and continue what they tell."""
    amounts, rows = now.amounts, now.amounts.rows
    gains = []
    for part in (Amounts(rows, amounts.passes // 2), Amounts(rows // 2, amounts.passes)):
        if part.passes < 4 < amounts.passes or len(holdings.fitted(part.rows)) < LEAST_ROWS:
            gains.append(float("nan"))
        elif part == amounts:
            gains.append(-np.inf)
        else:
            before = judge(holdings, part, rows).scores.mean
            gains.append(HALVES_LEFT * (now.scores.mean - before))
    return Forecast(*gains)


def final_fit(holdings: Holdings, amounts: Amounts, device: torch.device) -> Attributions:
    """Fit all targets: the score of what was kept aside, the weights of all."""
    source = StoreRows(holdings.store)
    passes = read_passes(holdings.store, most=amounts.passes) if amounts.passes else None
    groups = None if source.components is None else layers_of(source.components)
    split = Split(holdings.fitted(amounts.rows), holdings.judging(amounts.rows))
    return fit_and_score(source, split, _solver(passes, groups), _quietly(device))


def _quietly(device: torch.device | str) -> FitOptions:
    return FitOptions(
        device=torch.device(device), quiet=True, with_curve=False, say=lambda line: None
    )

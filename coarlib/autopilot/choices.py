"""What to buy next: what is forecast to bring most for its cost, until the goal is met."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from coarlib.autopilot.holdings import DENSE, JUDGING, Amounts, Holdings
from coarlib.autopilot.judge import Forecast, Judgement
from coarlib.errors import ArgumentError
from coarlib.gradient_passes.sums import PASS_COST

__all__ = ["FIRST", "Goal", "choose"]

FIRST = Amounts(32, 16)
STEP, LEAST_STEP = 1.6, 1.15  # by which passes or rows grow at once
LITTLE = 0.005  # gain of a doubling below which nothing more is bought, without a goal
ROWS_SHARE = 6  # at least one in so many forward passes is a row, of which some judge
BLOCK = 8  # passes are bought in whole blocks
WORDS = {"passes": "gradient passes", "rows": "rows", "alone": "leave-one-out"}


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Parameters
    ----------
    until : float, optional
        Held-out correlation that is wanted.
    budget : int, optional
        Forward passes over the examples, all together.
    minutes : float, optional
    """

    until: float | None = None
    budget: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not 0 < self.until < 1:
            raise ArgumentError(f"until is a correlation between 0 and 1, not {self.until}")
        least = FIRST.cost
        if self.budget is not None and self.budget < least:
            raise ArgumentError(f"the budget must be at least {least} forward passes")
        if self.minutes is not None and not self.minutes > 0:
            raise ArgumentError(f"minutes must be above 0, not {self.minutes}")

    def less(self, spent: int) -> Goal:
        """Return the goal where part of the budget is spent, as much as to start being left."""
        if self.budget is None:
            return self
        return replace(self, budget=max(FIRST.cost, self.budget - spent))


def choose(
    now: Judgement, ahead: Forecast, goal: Goal, holdings: Holdings, seconds: float
) -> tuple[Amounts, str]:
    """Return what there is to be next, and why; the same amounts mean to stop.

    Parameters
    ----------
    now : Judgement
    ahead : Forecast
    goal : Goal
    holdings : Holdings
    seconds : float
        Since the start.
    """
    have = now.amounts
    if goal.until is not None and now.scores.mean >= goal.until:
        sure = replace(have, rows=max(have.rows, DENSE))
        if sure == have or (goal.budget is not None and sure.cost > goal.budget):
            return have, f"stop: {goal.until:g} is reached"
        return sure, f"{goal.until:g} is reached: more rows to be sure of it"
    if goal.minutes is not None and seconds > 60 * goal.minutes:
        return have, f"stop: {goal.minutes:g} minutes are over"
    rates = _rates(have, ahead, goal, holdings)
    what = max(rates, key=lambda name: rates[name])
    gain: float = getattr(ahead, what)
    if goal == Goal() and gain < LITTLE:
        return have, f"stop: doubling would bring {gain:+.3f}"
    grown = _grown(have, what, _step(now, gain, goal), holdings)
    reason = _reason(what, gain)
    if goal.budget is None or grown.cost <= goal.budget:
        return grown, reason
    return _within(have, what, goal.budget), f"{reason}; no more than the budget allows"


def _rates(have: Amounts, ahead: Forecast, goal: Goal, holdings: Holdings) -> dict[str, float]:
    """Gain a forward pass of everything that can be bought."""
    rates = {"rows": _rate(ahead.rows, have.rows)}
    if have.passes and not holdings.no_passes:
        rates["passes"] = _rate(ahead.passes, PASS_COST * have.passes)
    whole = replace(have, alone=holdings.components).cost
    if goal.budget is None or whole <= goal.budget:
        rates["alone"] = _rate(ahead.alone, whole - have.cost)
    return rates


def _reason(what: str, gain: float) -> str:
    if what == "alone":
        if math.isnan(gain):
            return "leave-one-out of some components: to try it"
        return f"leave-one-out of all components: it is forecast to bring {gain:+.3f}"
    return f"more {WORDS[what]}: " + (
        f"twice as many are forecast to bring {gain:+.3f}" if math.isfinite(gain) else "to try them"
    )


def _step(now: Judgement, gain: float, goal: Goal) -> float:
    """By which factor to grow: no more than the wanted correlation is forecast to need."""
    if goal.until is None or not (math.isfinite(gain) and gain > 0):
        return STEP
    doublings = (goal.until - now.scores.mean) / gain
    return min(STEP, max(LEAST_STEP, 2 ** min(doublings, 1.0)))


def _grown(have: Amounts, what: str, step: float, holdings: Holdings) -> Amounts:
    """Return more of something; rows grow with what is spent, or too few of them judge."""
    if what == "rows":
        return replace(have, rows=math.ceil(have.rows * step))
    if what == "alone":
        count = holdings.components if have.alone else len(holdings.tried())
        return replace(have, alone=count)
    passes = BLOCK * math.ceil(have.passes * step / BLOCK)
    grown = replace(have, passes=passes)
    return replace(grown, rows=max(have.rows, grown.cost // ROWS_SHARE))


def _within(have: Amounts, what: str, budget: int) -> Amounts:
    """Return what the rest of a budget buys: whole blocks of passes, and rows."""
    left = max(0, budget - have.cost)
    blocks = left // (BLOCK * PASS_COST) if what == "passes" else 0
    left -= blocks * BLOCK * PASS_COST
    rows = have.rows + (left if left >= JUDGING else 0)
    return replace(have, rows=rows, passes=have.passes + BLOCK * blocks)


def _rate(gain: float, cost: int) -> float:
    """Gain a forward pass; what is not known yet is tried."""
    if math.isnan(gain):
        return math.inf
    return gain / max(cost, 1)

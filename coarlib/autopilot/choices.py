"""What to buy next: what is forecast to bring most for its cost, until the goal is met."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

from coarlib.autopilot.holdings import Amounts, Holdings
from coarlib.autopilot.judge import HALVES_LEFT, Forecast, Judgement
from coarlib.errors import ArgumentError, whole_number
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.regression.heldout import HeldOut

__all__ = ["FIRST", "ROWS_ALONE", "Goal", "choose", "verdict"]

FIRST = Amounts(rows=4, passes=16, trials=16)
ROWS_ALONE = Amounts(rows=40, passes=0)  # to start with where there can be no passes
STEP = 1.6  # by which what is there grows at once
LEAST_STEP, CAREFUL_STEP = 1.06, 1.2  # where it is to stop at a correlation
WIDE = 0.1  # below the mean an interval may reach where it is to stop at a correlation
LITTLE = 0.005  # gain of a doubling below which nothing more is bought, without a goal
TRIALS_SHARE = 3  # at least one in so many forward passes is a trial: they judge
SURE = 1.5  # times as much trials are to bring as passes: few of them tell what they bring
SILENT = 8 * FIRST.cost  # forward passes after which something must vary
BLOCK = 8  # passes and trials are bought in whole blocks
WORDS = {"passes": "gradient passes", "trials": "trials", "rows": "rows"}


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
        if self.until is not None and not (isinstance(self.until, Real) and 0 < self.until < 1):
            raise ArgumentError(f"until is a correlation between 0 and 1, not {self.until!r}")
        least = FIRST.cost
        if self.budget is not None and whole_number(self.budget, "budget") < least:
            raise ArgumentError(
                f"budget must be at least {least} forward passes, not {self.budget}"
            )
        if self.minutes is not None and not (isinstance(self.minutes, Real) and self.minutes > 0):
            raise ArgumentError(f"minutes must be above 0, not {self.minutes!r}")

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
    told = math.isfinite(now.scores.mean_low)  # else too few judge
    reached = goal.until is not None and now.scores.mean >= goal.until
    below = now.scores.mean - now.scores.mean_low
    if goal.until is not None and reached and below <= WIDE:  # not where it is NaN
        return have, f"stop: {verdict(goal.until, now.scores)}"
    if over := _over(now, goal, seconds):
        return have, f"stop: {over}"
    rates = _rates(have, ahead, goal, holdings)
    what = max(rates, key=lambda name: rates[name])
    gain: float = getattr(ahead, what)
    if goal == Goal() and gain < LITTLE:
        return have, f"stop: doubling would bring {gain:+.3f}"
    if goal == Goal(goal.until) and goal.until is not None and told and not reached:
        most = now.scores.mean_high + LITTLE / (1 - HALVES_LEFT)
        if most < goal.until and ahead.best < LITTLE:
            return have, f"stop: {goal.until:g} is out of reach: {_reason(what, gain)}"
    reason = _reason(what, gain)
    if reached:
        what, gain = "rows" if holdings.no_passes else "trials", 0.0
        so = f"but may be {below:.2f} less" if told else "by too few for an interval"
        reason = f"more {WORDS[what]}: {goal.until:g} is reached, {so}"
    grown = _grown(have, what, _step(now, gain, goal), holdings)
    if goal.budget is None or grown.cost <= goal.budget:
        return grown, reason
    return _within(have, what, goal.budget), f"{reason}; no more than the budget allows"


def _over(now: Judgement, goal: Goal, seconds: float) -> str | None:
    """Say why nothing more is bought whatever it would bring; None if there is no reason."""
    if goal.minutes is not None and seconds > 60 * goal.minutes:
        return f"{goal.minutes:g} minutes are over"
    if goal.budget is None and math.isnan(now.scores.mean) and now.amounts.cost >= SILENT:
        return "no output that is predicted varies (is the share that is ablated too small?)"
    return None


def verdict(until: float, scores: HeldOut) -> str:
    """Say whether a correlation is reached, and whether the interval still contains less."""
    if not scores.mean >= until:
        return f"{until:g} is not reached"
    if scores.mean_low >= until:
        return f"{until:g} is reached"
    if math.isnan(scores.mean_low):
        return f"{until:g} is reached, by {scores.unit} too few for an interval"
    return f"{until:g} is reached, but the 95% interval still contains less"


def _rates(have: Amounts, ahead: Forecast, goal: Goal, holdings: Holdings) -> dict[str, float]:
    """Gain a forward pass of everything that can be bought."""
    rates = {"rows": _rate(ahead.rows, have.rows)}
    if not holdings.no_passes:
        rates = {
            "passes": _rate(ahead.passes, PASS_COST * have.passes),
            "trials": _rate(ahead.trials, have.trials) / SURE,
        }
    whole = replace(have, alone=holdings.components).cost
    if goal.budget is None or whole <= goal.budget:
        rates["alone"] = _rate(ahead.alone, whole - have.cost)
    return rates


def _reason(what: str, gain: float) -> str:
    if what == "alone":
        if math.isnan(gain):
            return "leave-one-out of some components: to try it"
        return f"leave-one-out of all components: it is forecast to bring {gain:+.3f}"
    return f"more {WORDS[what]}: twice as many are forecast to bring {gain:+.3f}"


def _step(now: Judgement, gain: float, goal: Goal) -> float:
    """By which factor to grow: no more than the wanted correlation is forecast to need."""
    if goal.until is None:
        return STEP
    if not (math.isfinite(gain) and gain > 0):
        return CAREFUL_STEP
    doublings = (goal.until - now.scores.mean) / gain
    return min(CAREFUL_STEP, max(LEAST_STEP, 2 ** min(doublings, 1.0)))


def _grown(have: Amounts, what: str, step: float, holdings: Holdings) -> Amounts:
    """Return more of something; trials grow with what is spent, or too few of them judge."""
    if what == "rows":
        return replace(have, rows=math.ceil(have.rows * step))
    if what == "alone":
        count = holdings.components if have.alone else len(holdings.tried())
        return replace(have, alone=count)
    more = (step - 1) * have.cost
    if what == "trials":
        return replace(have, trials=have.trials + BLOCK * max(1, round(more / BLOCK)))
    share = (1 - 1 / TRIALS_SHARE) / (PASS_COST * BLOCK)
    grown = replace(have, passes=have.passes + BLOCK * max(1, round(more * share)))
    least = (grown.cost - grown.trials) / (TRIALS_SHARE - 1)
    return replace(grown, trials=max(grown.trials, BLOCK * math.floor(least / BLOCK)))


def _within(have: Amounts, what: str, budget: int) -> Amounts:
    """Return what the rest of a budget buys: rows, or whole blocks of passes and of trials."""
    left = max(0, budget - have.cost)
    if what == "rows":
        return replace(have, rows=have.rows + left)
    blocks = left // (BLOCK * PASS_COST) if what == "passes" else 0
    more = (left - blocks * BLOCK * PASS_COST) // BLOCK
    return replace(have, passes=have.passes + BLOCK * blocks, trials=have.trials + BLOCK * more)


def _rate(gain: float, cost: int) -> float:
    """Gain a forward pass; what is not known yet is tried."""
    if math.isnan(gain):
        return math.inf
    return gain / max(cost, 1)

"""The loop: judge, forecast, buy what brings most for its cost, until the goal is met."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coarlib.ablation.task import ComponentTask
from coarlib.autopilot.holdings import JUDGING, Amounts, Holdings
from coarlib.autopilot.judge import Forecast, Judgement, final_fit, forecast, judge
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, TaskError
from coarlib.files import whole_file
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.regression import Attributions
from coarlib.store import Store

__all__ = ["Goal", "attribute"]

FIRST = Amounts(48, 16)
SURE_ROWS = 96  # a quarter of them judges
STEP = 1.6  # by which passes or rows grow at once
LITTLE = 0.005  # gain of a doubling below which nothing more is bought, without a goal
BLOCK = 8  # passes are bought in whole blocks
LOG = "purchases.json"


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


@dataclass
class _Log:
    """What was bought, and why; on disk after every purchase."""

    path: Path
    say: Callable[[str], None]
    entries: list[dict[str, Any]] = field(default_factory=list)

    def note(self, now: Judgement, reason: str) -> None:
        amounts, scores = now.amounts, now.scores
        self.entries.append(
            {
                "rows": amounts.rows,
                "passes": amounts.passes,
                "forward_passes": amounts.cost,
                "correlation": scores.mean,
                "interval_95": [_number(scores.mean_low), _number(scores.mean_high)],
                "linear_ceiling": _number(now.ceiling),
                "next": reason,
            }
        )
        with whole_file(self.path, "w") as file:
            json.dump(self.entries, file, indent=1)
        bounds = f" [{scores.mean_low:.3f}, {scores.mean_high:.3f}]"
        bounds = "" if math.isnan(scores.mean_low) else bounds  # too few rows judge
        self.say(
            f"{amounts.passes} gradient passes and {amounts.rows} rows "
            f"({amounts.cost:,} forward passes): held-out correlation {scores.mean:.3f}{bounds}; "
            f"{reason}"
        )


def attribute(
    task: ComponentTask,
    out: str | Path,
    *,
    until: float | None = None,
    budget: int | None = None,
    minutes: float | None = None,
    fraction: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    share: bool = False,
    quiet: bool = False,
) -> Attributions:
    """Attribute a model's outputs to its components with as few forward passes as it takes.

    It starts with a few gradient passes and rows. A quarter of the rows is kept aside to judge.
    Halves of what is there, judged on the same rows, say what twice as many passes or rows would
    bring; what brings more for its cost is bought, until the goal is met. Whatever is bought is
    kept in ``out``, so the same call goes on where another was stopped.

    Parameters
    ----------
    task : ComponentTask
    out : str or Path
        Directory for the store, what was bought and why (``purchases.json``), and the result.
    until : float, optional
        Held-out correlation at which to stop.
    budget : int, optional
        Forward passes over the examples that may be spent; a gradient pass counts as three.
    minutes : float, optional
        When to stop buying. Without any goal it stops where doubling would bring little.
    fraction : float
        Share of the components that is ablated.
    seed : int
        Of the masks.
    device : str
    share : bool
        Several calls with one ``out`` share the work.
    quiet : bool
        Print nothing.

    Returns
    -------
    Attributions
        ``summary["autopilot"]`` says what was bought, why it stopped, what doubling would bring.

    Raises
    ------
    ArgumentError
        If a goal cannot be.
    StoreError
        If ``out`` holds something else.
    """
    goal, started = Goal(until, budget, minutes), time.monotonic()
    if not isinstance(task, ComponentTask):
        raise TaskError(f"components are attributed of a ComponentTask, not {type(task).__name__}")
    out = Path(out)
    say = (lambda line: None) if quiet else print
    store = out / "store"
    if (store / "spec.json").is_file():
        task.prepare(resolve_device(device))
        kept = Store.open(store)
    else:
        kept = Store.create(store, task, FIRST.rows, 1 - fraction, seed=seed, device=device)
    holdings = Holdings(kept, task, resolve_device(device), share)
    log = _Log(out / LOG, say)
    have = holdings.amounts
    wanted = Amounts(max(have.rows, FIRST.rows), max(have.passes, FIRST.passes))
    while True:
        if not holdings.buy(wanted):
            raise KeyboardInterrupt
        have = holdings.amounts
        now = judge(holdings, have, have.rows)
        ahead = forecast(holdings, now)
        wanted, reason = _next(now, ahead, goal, holdings, time.monotonic() - started)
        log.note(now, reason)
        if wanted == have:
            break
    found = final_fit(holdings, have, resolve_device(device))
    found.summary["autopilot"] = {
        "purchases": log.entries,
        "doubling_passes_brings": _number(ahead.passes),
        "doubling_rows_brings": _number(ahead.rows),
        "without_gradient_passes": holdings.no_passes,
        "seconds": time.monotonic() - started,
    }
    return found


def _next(
    now: Judgement, ahead: Forecast, goal: Goal, holdings: Holdings, seconds: float
) -> tuple[Amounts, str]:
    """Return what there is to be next, and why; the same amounts mean to stop."""
    have = now.amounts
    if goal.until is not None and now.scores.mean >= goal.until:
        sure = Amounts(max(have.rows, SURE_ROWS), have.passes)
        if sure == have or (goal.budget is not None and sure.cost > goal.budget):
            return have, f"stop: {goal.until:g} is reached"
        return sure, f"{goal.until:g} is reached: more rows to be sure of it"
    if goal.minutes is not None and seconds > 60 * goal.minutes:
        return have, f"stop: {goal.minutes:g} minutes are over"
    rates = {"rows": _rate(ahead.rows, have.rows), "passes": -math.inf}
    if have.passes and not holdings.no_passes:
        rates["passes"] = _rate(ahead.passes, PASS_COST * have.passes)
    what = max(rates, key=lambda name: rates[name])
    gain = ahead.passes if what == "passes" else ahead.rows
    if goal == Goal() and gain < LITTLE:
        return have, f"stop: doubling would bring {gain:+.3f}"
    words = "gradient passes" if what == "passes" else "rows"
    reason = f"more {words}: " + (
        f"twice as many are forecast to bring {gain:+.3f}" if math.isfinite(gain) else "to try them"
    )
    grown = _grown(have, what)
    if goal.budget is None or grown.cost <= goal.budget:
        return grown, reason
    return _within(have, what, goal.budget), f"{reason}; no more than the budget allows"


def _grown(have: Amounts, what: str) -> Amounts:
    """Return more of something; rows grow with what is spent, or too few of them judge."""
    if what == "rows":
        return Amounts(math.ceil(have.rows * STEP), have.passes)
    passes = BLOCK * math.ceil(have.passes * STEP / BLOCK)
    return Amounts(max(have.rows, Amounts(have.rows, passes).cost // JUDGING), passes)


def _within(have: Amounts, what: str, budget: int) -> Amounts:
    """Return what the rest of a budget buys: whole blocks of passes, and rows."""
    left = max(0, budget - have.cost)
    blocks = left // (BLOCK * PASS_COST) if what == "passes" else 0
    left -= blocks * BLOCK * PASS_COST
    rows = have.rows + (left if left >= JUDGING else 0)
    return Amounts(rows, have.passes + BLOCK * blocks)


def _rate(gain: float, cost: int) -> float:
    """Gain a forward pass; what is not known yet is tried."""
    if math.isnan(gain):
        return math.inf
    return gain / max(cost, 1)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

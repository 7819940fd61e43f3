"""The loop: judge, forecast, buy what brings most for its cost, until the goal is met."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from coarlib.ablation import ComponentTask, Hierarchy
from coarlib.autopilot.choices import FIRST, ROWS_ALONE, Goal, choose, verdict
from coarlib.autopilot.groups import coarse_goal, opened_before, strength, what_matters
from coarlib.autopilot.holdings import Holdings
from coarlib.autopilot.judge import Forecast, Judgement, final_fit, forecast, judge
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, StoreError, TaskError
from coarlib.files import whole_file
from coarlib.gradient_passes.plan import MOST_REMOVED
from coarlib.loading import load_json
from coarlib.masks import MaskDesign
from coarlib.regression import Attributions
from coarlib.store import Store
from coarlib.store.create import initialize
from coarlib.store.identity import all_identities
from coarlib.store.layout import SPEC_FILE
from coarlib.store.spec import spec_of_layout

__all__ = ["attribute", "check_start", "pursue"]

LOG, STORE, COARSE = "purchases.json", "store", "groups"


@dataclass
class _Log:
    """What was bought, and why; on disk after every purchase."""

    path: Path
    say: Callable[[str], None]
    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, say: Callable[[str], None]) -> _Log:
        """Go on with what was noted before; StoreError if it is damaged."""
        before = load_json(path, StoreError) if path.is_file() else []
        if not (isinstance(before, list) and all(isinstance(entry, dict) for entry in before)):
            raise StoreError(f"{path} does not say what was bought; move it away to go on")
        return cls(path, say, before)

    def note(self, now: Judgement, reason: str) -> None:
        amounts, scores = now.amounts, now.scores
        self.entries.append(
            {
                "rows": amounts.rows,
                "passes": amounts.passes,
                "trials": amounts.trials,
                "left_out_alone": amounts.alone,
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
        alone = f", {amounts.alone} components left out alone" if amounts.alone else ""
        bounds = "" if math.isnan(scores.mean_low) else bounds  # too few rows judge
        self.say(
            f"{amounts.passes} gradient passes, {amounts.trials} trials, {amounts.rows} "
            f"rows{alone} ({amounts.cost:,} forward passes): held-out correlation "
            f"{scores.mean:.3f}{bounds}; {reason}"
        )


def attribute(
    task: ComponentTask,
    out: str | Path,
    *,
    until: float | None = None,
    budget: int | None = None,
    minutes: float | None = None,
    coarse: str | Mapping[str, str] | None = None,
    fraction: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    share: bool = False,
    quiet: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> Attributions:
    """Attribute a model's outputs to its components with as few forward passes as it takes.

    It starts with a few gradient passes and trials (forward passes in which every example has an
    ablation of its own). Trials judge: each is predicted by a fit of the others and of all else.
    Fits of less than what is there say what twice as many passes or trials would bring; some
    components are left out alone to learn what doing that with all of them would. What brings most
    for its cost is bought, until the goal is met. Where components cannot be scaled, rows take the
    place of passes and trials. Whatever is bought is kept in ``out``, so the same call goes on
    where another was stopped.

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
    coarse : str or mapping, optional
        Try groups first (``"layer"``, ``"block"`` or as of :class:`coarlib.ablation.Hierarchy`),
        with a quarter of the budget, then the members of those that matter; the other groups
        stay whole. A task whose components are a hierarchy does so by itself.
    fraction : float
        Share of the components that is ablated.
    seed : int
        Of the masks.
    device : str
    share : bool
        Several calls with one ``out`` share the work.
    quiet : bool
        Print nothing.
    origin : dict, optional
        What rebuilds the task, kept with the rows: ``{"task": "file.py:name", "settings": {}}``.

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
    check_start(out, fraction, seed)
    if not isinstance(task, ComponentTask):
        raise TaskError(f"components are attributed of a ComponentTask, not {type(task).__name__}")
    plan = _Plan(Path(out), fraction, seed, resolve_device(device), share, quiet, started, origin)
    task = plan.prepared(task)
    if len(task.outputs) > 1:
        raise TaskError(
            f"one output is attributed at a time, and the task has {', '.join(task.outputs)}: "
            "give it one of them (outputs)"
        )
    parts = task.component_set
    if coarse is not None:
        parts = Hierarchy(parts, coarse)
    if not isinstance(parts, Hierarchy):
        return plan.run(task, plan.out, goal)
    coarsely = plan.prepared(task.with_components(parts.coarse()))
    groups = plan.run(coarsely, plan.out / COARSE, coarse_goal(goal))
    opened = opened_before(plan.out / STORE, parts) or what_matters(groups, parts)
    plan.say(f"{len(opened)} of {len(parts.parents)} groups matter: {', '.join(opened)}")
    spent = int(groups.cost.passes)
    finely = plan.prepared(task.with_components(parts.refined(opened)))
    found = plan.run(finely, plan.out, goal.less(spent))
    found.summary["autopilot"] |= {
        "groups": dict(zip(parts.parents, strength(groups).tolist(), strict=True)),
        "opened": opened,
        "forward_passes_for_groups": spent,
    }
    return found


def check_start(out: str | Path, fraction: float, seed: int) -> None:
    """Refuse a share that cannot be, and an ``out`` that was begun otherwise.

    Raises
    ------
    ArgumentError
        If the share is not above 0 and at most 2/3.
    StoreError
        If ``out`` is a store itself, or the masks of what is there are others.
    """
    if not (isinstance(fraction, Real) and 0 < fraction <= MOST_REMOVED):
        raise ArgumentError(f"fraction must be above 0 and at most 2/3, not {fraction!r}")
    if (Path(out) / SPEC_FILE).exists():
        raise StoreError(
            f"{out} is a store; give a directory of its own, which will have one inside"
        )
    for place in (Path(out) / COARSE, Path(out)):
        if not (place / STORE / SPEC_FILE).is_file():
            continue
        design = Store.open(place / STORE).design
        share = 0.0 if design is None or design.keep_prob is None else 1 - design.keep_prob
        begun = None if design is None else design.seed
        if begun != seed or not math.isclose(share, fraction, abs_tol=1e-9):
            raise StoreError(
                f"{out} was begun with fraction {share:g} and seed {begun}, not {fraction:g} and "
                f"{seed}; give those, or another out"
            )


@dataclass(frozen=True)
class _Plan:
    """How a call of :func:`attribute` goes about it."""

    out: Path
    fraction: float
    seed: int
    device: torch.device
    share: bool
    quiet: bool
    started: float
    origin: Mapping[str, Any] | None

    def say(self, line: str) -> None:
        """Print a line, unless nothing is to be printed."""
        if not self.quiet:
            print(line)

    def prepared(self, task: ComponentTask) -> ComponentTask:
        """Prepare a task on the device."""
        task.prepare(self.device)
        return task

    def run(self, task: ComponentTask, out: Path, goal: Goal) -> Attributions:
        """Buy for the components of a prepared task, and fit."""
        store = out / STORE
        if not (store / SPEC_FILE).is_file():
            design = MaskDesign(keep_prob=1 - self.fraction, seed=self.seed)
            initialize(store, spec_of_layout(task.layout(), FIRST.rows, design))
        kept = self._begun(store, task)
        holdings = Holdings(kept, task, self.device, self.share, self.origin)
        log = _Log.of(out / LOG, self.say)
        now, ahead = pursue(holdings, goal, log.note, self.started)
        found = final_fit(holdings, now.amounts, self.device)
        found.summary["autopilot"] = {
            "purchases": log.entries,
            "doubling_passes_brings": _number(ahead.passes),
            "doubling_trials_brings": _number(ahead.trials),
            "doubling_rows_brings": _number(ahead.rows),
            "leaving_out_alone_brings": _number(ahead.alone),
            "without_gradient_passes": holdings.no_passes,
            "seconds": time.monotonic() - self.started,
        }
        if goal.until is not None and found.held_out is not None:
            found.summary["autopilot"]["goal"] = told = verdict(goal.until, found.held_out)
            self.say(told)
        return found

    def _begun(self, path: Path, task: ComponentTask) -> Store:
        """Open the store that is there, if this task began it."""
        kept = Store.open(path)
        known = all_identities(path)
        if known and task.adopt(known[0]) not in (None, *known):
            raise StoreError(
                f"{path.parent} was begun with another task (other weights, examples, components, "
                "outputs, precision or way of ablating) or another version of coarlib; give the "
                "task and the settings that it was begun with, or another out"
            )
        return kept


def pursue(
    holdings: Holdings, goal: Goal, note: Callable[[Judgement, str], None], started: float
) -> tuple[Judgement, Forecast]:
    """Buy until the goal is met.

    Parameters
    ----------
    holdings : Holdings
    goal : Goal
    note : callable
        Receives every judgement, and what follows from it.
    started : float
        Moment of the monotonic clock.

    Raises
    ------
    KeyboardInterrupt
        If a signal stopped a purchase; what was bought is kept.
    """
    have = holdings.amounts
    wanted = have.at_least(FIRST)
    while True:
        if not holdings.buy(wanted):
            raise KeyboardInterrupt
        if holdings.no_passes and not holdings.buy(holdings.amounts.at_least(ROWS_ALONE)):
            raise KeyboardInterrupt
        have = holdings.amounts
        now = judge(holdings, have)
        ahead = forecast(holdings, now)
        if goal.until is not None and goal.until - now.scores.mean <= 2 * max(0.0, ahead.missing):
            now = replace(
                now, scores=now.known.told(few=now.scores)
            )  # near the goal: once more, with care
        wanted, reason = choose(now, ahead, goal, holdings, time.monotonic() - started)
        note(now, reason)
        if wanted == have:
            return now, ahead


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

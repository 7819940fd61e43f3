"""Coarse to fine: which groups of components matter, so that only their members are tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarlib.ablation import Hierarchy
from coarlib.autopilot.choices import FIRST, Goal
from coarlib.regression import Attributions
from coarlib.store.components import read_components

__all__ = ["coarse_goal", "opened_before", "strength", "what_matters"]

SHARE = 0.25  # of the budget goes into groups
MATTERS = 0.9  # of the squared effects the opened groups hold


def coarse_goal(goal: Goal) -> Goal:
    """Return the goal for groups: part of the budget, or the same correlation."""
    if goal.budget is None:
        return goal
    return Goal(budget=max(FIRST.cost, round(SHARE * goal.budget)), minutes=goal.minutes)


def strength(groups: Attributions) -> NDArray[np.float64]:
    """Return each group's share of the squared effects; targets count alike, [G].

    What errors alone would give is taken off.
    """
    squares = groups.weight.astype(np.float64) ** 2
    if groups.standard_error is not None:
        squares = np.maximum(squares - groups.standard_error**2, 0)
    total = squares.sum(0)
    shares = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0).mean(1)
    return np.asarray(shares / max(shares.sum(), 1e-300))


def what_matters(groups: Attributions, parts: Hierarchy) -> list[str]:
    """Return the fewest groups that hold nine tenths of the squared effects, in their order."""
    shares = strength(groups)
    order = np.argsort(-shares, kind="stable")
    count = 1 + int(np.searchsorted(shares[order].cumsum(), MATTERS))
    return [parts.parents[at] for at in sorted(order[:count])]


def opened_before(store: Path, parts: Hierarchy) -> list[str] | None:
    """Return the groups whose members a store was begun with; None if it is not begun.

    More ablations of groups may say otherwise, but rows of other members do not go with its own.
    """
    table = read_components(store)
    if table is None:
        return None
    whole = {one.get("module") for one in table if one.get("kind") == "group"}
    return [parent for parent in parts.parents if parent not in whole]

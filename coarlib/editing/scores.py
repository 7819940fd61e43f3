"""Which components matter for target examples and not for reference examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ComponentError, nearest

Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def t_like(target: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference of means over its standard error, as upstream (Welch, divisor n).

    Parameters
    ----------
    target, reference : float [N, T], float [N, R]
        Attributions of the two groups of examples.

    Returns
    -------
    float64 [N]
        A component whose attributions do not vary at all scores 0 if the means agree, else ±inf.
    """
    error = np.sqrt(
        target.var(axis=1) / target.shape[1] + reference.var(axis=1) / reference.shape[1]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        score = mean_difference(target, reference) / error
    return np.nan_to_num(score, nan=0.0, posinf=np.inf, neginf=-np.inf)


def mean_difference(
    target: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return mean over targets minus mean over references, [N]."""
    return np.asarray(target.mean(axis=1) - reference.mean(axis=1))


def target_mean(target: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over targets alone, [N]."""
    return np.asarray(target.mean(axis=1))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"t_like": t_like, "mean_difference": mean_difference, "target_mean": target_mean}
)


def score_components(
    weight: NDArray[Any],
    target: Sequence[int] | NDArray[Any],
    reference: Sequence[int] | NDArray[Any],
    statistic: str = "t_like",
) -> NDArray[np.float64]:
    """Score components by what they do for the targets and not for the references.

    Parameters
    ----------
    weight : float [N, examples]
        Attributions: effect of keeping a component on each example's output.
    target, reference : indices or bool masks of examples
    statistic : str
        Key of :data:`STATISTICS`.

    Returns
    -------
    float64 [N]
        High: keeping the component raises the targets' outputs.

    Raises
    ------
    ComponentError
        If the statistic is unknown or a group of examples is empty.
    """
    if statistic not in STATISTICS:
        raise ComponentError(f"unknown statistic {statistic}{nearest(statistic, STATISTICS)}")
    every = np.arange(np.shape(weight)[1])
    groups = [
        np.asarray(weight, np.float64)[:, every[group] if len(group) else every[:0]]
        for group in (target, reference)
    ]
    if not groups[0].shape[1] or not groups[1].shape[1]:
        raise ComponentError("target and reference examples must be at least one each")
    return STATISTICS[statistic](*groups)


def rank_components(scores: NDArray[np.float64], raise_target: bool) -> NDArray[np.int64]:
    """Return the order in which to ablate: lowest scores first to raise the targets' outputs."""
    return np.argsort(scores if raise_target else -scores, kind="stable")

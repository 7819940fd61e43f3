"""Metrics of predicted against measured outputs, by name: what stands beside the LDS.

A metric is a function ``(predicted [M, T], measured [M, T]) -> [T]``, a number a target, NaN where
it is not defined. Predictions are sums of the scores of what a subset keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError, nearest
from coarlib.scoring.subset_sums import subset_sums
from coarlib.statistics.arrays import as_array, as_masks

__all__ = ["METRICS", "Metric", "evaluate", "register"]

Metric = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Make a metric known by the name of its function; usable as a decorator."""
    METRICS[metric.__name__] = metric
    return metric


def evaluate(name: str, scores: Any, masks: Any, outputs: Any) -> NDArray[np.float64]:
    """Compute a metric for every target.

    Parameters
    ----------
    name : str
        One of :data:`METRICS`.
    scores : real [N, T]
    masks : bool [M, N]
    outputs : real [M, T]

    Returns
    -------
    float64 [T]

    Raises
    ------
    ScoringError
        If there is no such metric, or the shapes do not fit.
    """
    if name not in METRICS:
        raise ScoringError(
            f"unknown metric {name!r}{nearest(name, METRICS)} (there are {', '.join(METRICS)})"
        )
    scores, measured = as_array(scores, "scores"), as_array(outputs, "outputs")
    predicted = subset_sums(scores, as_masks(masks, scores.shape[0])).T
    if predicted.shape != measured.shape:
        raise ScoringError(
            f"predictions {list(predicted.shape)} and outputs {list(measured.shape)} differ"
        )
    return METRICS[name](predicted, measured.astype(np.float64))


@register
def slope(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the slope of outputs on predictions: 1 is calibrated, less is too extreme."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = predicted - predicted.mean(0)
        return np.asarray((centred * measured).sum(0) / (centred * centred).sum(0))


@register
def r_squared(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the outputs' variance that the predictions explain, offsets aside."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (measured - predicted).var(0) / measured.var(0))

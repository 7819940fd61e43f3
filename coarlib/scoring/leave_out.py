"""Scores against what leaving examples out really does."""

from __future__ import annotations

from typing import Any

import numpy as np

from coarlib.errors import ScoringError
from coarlib.scoring.rows import mean_over_runs, outputs_matrix
from coarlib.scoring.subset_sums import subset_sums
from coarlib.statistics.arrays import as_array
from coarlib.statistics.correlation import Correlation, Kind, correlate

__all__ = ["group_loo", "loo_corr"]


def loo_corr(
    scores: Any,
    removed: Any,
    outputs: Any,
    kind: Kind = "pearson",
    *,
    higher_is_better: bool = True,
) -> Correlation:
    """Correlate scores with the effect of leaving single examples out.

    Parameters
    ----------
    scores : real [N, T]
        A positive score says that keeping example n makes output t better.
    removed : int [K]
        Which example was left out of each of the K models, in any order; not all N need occur.
        Whole numbers stored as floats are accepted.
    outputs : real [K, T] or [K, R, T]
        Outputs of those models, as measured (R runs are averaged). The full model's outputs are
        not needed: a constant changes no correlation over the K models.
    kind : "spearman", "pearson" or "kendall"
    higher_is_better : bool
        Whether a larger output is better, as for margins; False for losses.

    Returns
    -------
    Correlation
        Per target: positive if leaving out examples with high scores makes the output worse. NaN
        with an :class:`UndefinedCorrelationWarning` where undefined.

    Raises
    ------
    ScoringError
        If shapes do not fit, or an index is outside ``[0, N)`` or not an integer.
    """
    indices = as_array(removed, "removed")
    if indices.dtype.kind == "f" and (indices == np.floor(indices)).all():
        indices = indices.astype(np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ScoringError(
            f"removed must be a list of integer indices, not {indices.dtype} {list(indices.shape)}"
        )
    return _left_out(scores, indices[:, None], outputs, kind, higher_is_better)


def group_loo(
    scores: Any,
    groups: Any,
    outputs: Any,
    kind: Kind = "spearman",
    *,
    higher_is_better: bool = True,
) -> Correlation:
    """Correlate summed scores of groups with the effect of leaving whole groups out.

    Parameters
    ----------
    scores, outputs, kind, higher_is_better
        As :func:`loo_corr`.
    groups : list of K index arrays (lengths may differ), or int [K, g]
        The examples left out of each model.

    Returns
    -------
    Correlation

    Raises
    ------
    ScoringError
        If shapes do not fit, or groups are not lists of distinct examples.
    """
    return _left_out(scores, groups, outputs, kind, higher_is_better)


def _left_out(
    scores: Any, groups: Any, outputs: Any, kind: Kind, higher_is_better: bool
) -> Correlation:
    scores = as_array(scores, "scores")
    if scores.ndim != 2:
        raise ScoringError(f"scores must be [N, T], not of shape {list(scores.shape)}")
    predicted = subset_sums(scores, [as_array(group, "group") for group in groups])
    measured = mean_over_runs(outputs_matrix(outputs, predicted.shape[1], scores.shape[1]))
    # Leaving out what helps makes the output worse: lower, if higher is better.
    effect = -measured.astype(np.float64) if higher_is_better else measured
    result = correlate(predicted.T, effect, kind)
    result.warn(stacklevel=3)
    return result

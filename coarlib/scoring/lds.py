"""The linear datamodeling score (Park et al. 2023, arXiv:2303.14186) and its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import card, histogram
from coarlib.errors import ScoringError
from coarlib.progress import Progress
from coarlib.scoring.subset_sums import subset_sums
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, as_masks, blocks
from coarlib.statistics.bootstrap import Interval, RowBootstrap
from coarlib.statistics.correlation import (
    Correlation,
    Kind,
    check_kind,
    join,
    pearson_of,
    rank_correlation,
)
from coarlib.statistics.ranks import doubled_ranks

__all__ = ["LDSResult", "lds", "mean_over_runs", "outputs_matrix"]


@dataclass(frozen=True)
class LDSResult:
    """The LDS of T targets over M subsets.

    Attributes
    ----------
    correlation, p_value : float64 [T]
        Correlation of predicted with true outputs over the subsets, and its two-sided p-value.
        NaN where undefined.
    mean : float
        Mean correlation over the defined targets: *the* LDS. NaN if no target is defined.
    interval : Interval or None
        Bootstrap interval of the mean, resampling subsets; None with ``resamples=0``, and NaN from
        fewer than 20 subsets.
    num_subsets : int
    num_constant, num_nan : int
        Targets left out: predictions or outputs are constant; scores or outputs hold a NaN.
    kind : "spearman", "pearson" or "kendall"
    replicates : float64 [resamples]
        Mean correlation in each resample, moved to the spread of ``mean``. With one seed,
        replicates of two methods on the same rows are paired.
    """

    correlation: NDArray[np.float64]
    p_value: NDArray[np.float64]
    mean: float
    interval: Interval | None
    num_subsets: int
    num_constant: int
    num_nan: int
    kind: Kind
    replicates: NDArray[np.float64]

    @property
    def num_targets(self) -> int:
        """T, defined or not."""
        return self.correlation.size

    @property
    def num_scored(self) -> int:
        """How many targets have a correlation."""
        return self.num_targets - self.num_constant - self.num_nan

    def __repr__(self) -> str:
        left_out = self.num_targets - self.num_scored
        note = f" ({left_out:,} left out: constant or NaN)" if left_out else ""
        return (
            f"LDS {self.mean:.3f}{'' if self.interval is None else f' {self.interval}'}\n"
            f"{self.kind} correlation over {self.num_subsets:,} subsets, mean of "
            f"{self.num_scored:,} targets{note}\n"
            f"p < .05 for {self.share_significant():.0%} of the targets"
        )

    def _repr_html_(self) -> str:
        return card(repr(self), histogram(self.correlation, "LDS of the targets"))

    def share_significant(self, level: float = 0.05) -> float:
        """Share of the defined targets with a p-value below ``level``."""
        defined = ~np.isnan(self.correlation)
        return float(np.mean(self.p_value[defined] < level)) if defined.any() else np.nan


def lds(
    scores: Any,
    masks: Any,
    margins: Any,
    kind: Kind = "spearman",
    *,
    higher_is_better: bool = True,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    quiet: bool = True,
) -> LDSResult:
    """Correlate summed scores of subsets with the outputs measured on them.

    For target t, the prediction for subset S is the sum of ``scores[n, t]`` over n in S (Park et
    al. 2023, eq. 4). Sums are exact before ranking, so that equal sums tie. Targets are handled
    in blocks: scores, masks and margins may be memory-mapped arrays larger than memory.

    Parameters
    ----------
    scores : real [N, T]
        Array, tensor, memmap or sparse matrix. A positive score says that keeping example n makes
        output t *better*.
    masks : bool or 0/1 [M, N], or a list of M index arrays
        True = kept (in the training set, not ablated). See
        :func:`coarlib.scoring.masks_from_indices` for rectangular index arrays.
    margins : real [M, T] or [M, R, T]
        Measured outputs; R runs of a subset are averaged first.
    kind : "spearman", "pearson" or "kendall"
    higher_is_better : bool
        Whether a larger output is better, as for margins. False for losses: the outputs are
        negated. Nothing is guessed.
    resamples : int
        Bootstrap resamples of the subsets; 0 for no interval.
    level, seed
        Coverage and seed of the interval; see :class:`coarlib.statistics.bootstrap.RowBootstrap`.
    quiet : bool
        Show no progress.

    Returns
    -------
    LDSResult
        Undefined targets are NaN, counted by reason, and left out of the mean;
        an :class:`UndefinedCorrelationWarning` names the first of them.

    Raises
    ------
    ScoringError
        If the shapes do not fit together, or masks are not masks.
    """
    check_kind(kind)
    scores = as_array(scores, "scores")
    if scores.ndim != 2:
        raise ScoringError(f"scores must be [N, T], not of shape {list(scores.shape)}")
    masks = as_masks(masks, scores.shape[0])
    outputs = outputs_matrix(margins, masks.shape[0], scores.shape[1])
    count, targets = masks.shape[0], scores.shape[1]
    bootstrap = None
    if resamples != 0:
        bootstrap = RowBootstrap(count, kind, resamples=resamples, seed=seed)
    parts: list[Correlation] = []
    with Progress(targets, "scoring", "target", quiet=quiet) as progress:
        for piece in blocks(targets, BLOCK_BYTES // (8 * max(*masks.shape, 1))):
            predicted = subset_sums(scores[:, piece], masks)
            true = mean_over_runs(outputs[..., piece])
            parts.append(_score_block(predicted, true, kind, higher_is_better, bootstrap))
            progress.advance(predicted.shape[0])
    result = join(parts)
    result.warn()
    defined = ~np.isnan(result.r)
    return LDSResult(
        correlation=result.r,
        p_value=result.p,
        mean=float(result.r[defined].mean()) if defined.any() else np.nan,
        interval=bootstrap.interval(level) if bootstrap else None,
        num_subsets=count,
        num_constant=int(result.constant.sum()),
        num_nan=int(result.has_nan.sum()),
        kind=kind,
        replicates=bootstrap.replicates if bootstrap else np.empty(0),
    )


def outputs_matrix(margins: Any, num_subsets: int, num_targets: int) -> NDArray[Any]:
    """Check outputs [M, T] or [M, R, T] against the numbers of subsets and targets.

    Raises
    ------
    ScoringError
        If they do not fit.
    """
    outputs = as_array(margins, "margins")
    if outputs.ndim not in (2, 3):
        raise ScoringError(
            f"margins must be [M, T] or [M, runs, T], not of shape {list(outputs.shape)}"
        )
    if outputs.shape[0] != num_subsets:
        raise ScoringError(
            f"there are {num_subsets} masks but margins of {outputs.shape[0]} subsets"
        )
    if outputs.shape[-1] != num_targets:
        raise ScoringError(
            f"scores are for {num_targets} targets but margins for {outputs.shape[-1]}"
        )
    return outputs


def mean_over_runs(outputs: NDArray[Any]) -> NDArray[Any]:
    """Average [M, R, T] over runs in float64; [M, T] is returned as it is."""
    return outputs if outputs.ndim == 2 else np.asarray(outputs.mean(axis=1, dtype=np.float64))


def _score_block(
    predicted: NDArray[np.float64],
    true: NDArray[Any],
    kind: Kind,
    higher_is_better: bool,
    bootstrap: RowBootstrap | None,
) -> Correlation:
    """Correlate predictions [B, M] with outputs [M, B]."""
    a: NDArray[Any]
    b: NDArray[Any]
    if kind == "pearson":
        a, b = predicted, np.ascontiguousarray(true.T, dtype=np.float64)
        b = b if higher_is_better else -b
        result = pearson_of(a.T, b.T)
    else:
        (a, nan_a), (b, nan_b) = doubled_ranks(predicted, axis=1), doubled_ranks(true)
        b = b if higher_is_better else -b
        result = rank_correlation(a, b, nan_a | nan_b, kind)
    if bootstrap is not None:
        bootstrap.add(a, b, result.r)
    return result

"""The linear datamodeling score (Park et al. 2023, arXiv:2303.14186) and its interval."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import card, histogram
from coarlib.errors import ScoringError
from coarlib.progress import Progress
from coarlib.scoring.ceiling import NoiseCeiling, noise_ceiling
from coarlib.scoring.nonfinite import (
    NonFinite,
    check_nonfinite,
    targets_by_rows,
    warn_of_infinite,
    without_infinite,
)
from coarlib.scoring.regime import Regime, regime_of
from coarlib.scoring.rows import ScoredRows, mean_over_runs, named, scored_rows
from coarlib.scoring.subset_sums import subset_sums
from coarlib.statistics.arrays import BLOCK_BYTES, blocks
from coarlib.statistics.correlation import (
    Correlation,
    Kind,
    UndefinedCorrelationWarning,
    check_kind,
    join,
    pearson_of,
    rank_correlation,
)
from coarlib.statistics.intervals import Interval, MeanInfluence, ratio_interval
from coarlib.statistics.ranks import doubled_ranks

__all__ = ["LDSResult", "lds"]


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
        Interval of the mean, for the subsets being random; None with ``interval=False``.
    num_constant, num_nan_scores, num_nan_outputs : int
        Targets left out: predictions or outputs are constant; scores are not finite; outputs hold
        a NaN (or, for Pearson's correlation, an infinity).
    num_infinite : int
        Targets with infinite outputs, which rank correlations take for very large ones.
    rows : int64 [M]
        Which of the given rows were scored on.
    failed_rows, fitted_rows : int64
        Rows left out: all outputs NaN; the scores were fitted on them.
    includes_fitted : bool
        Whether the scores were fitted on some of ``rows``, so that the LDS says little about
        others.
    regime : Regime
    ceiling : NoiseCeiling or None
        What a perfect method would reach, where there are several runs of a subset.
    influence : float64 [M]
        Of each row on ``mean``; empty with ``interval=False``.
    """

    correlation: NDArray[np.float64]
    p_value: NDArray[np.float64]
    mean: float
    interval: Interval | None
    num_constant: int
    num_nan_scores: int
    num_nan_outputs: int
    num_infinite: int
    rows: NDArray[np.int64]
    failed_rows: NDArray[np.int64]
    fitted_rows: NDArray[np.int64]
    includes_fitted: bool
    regime: Regime
    ceiling: NoiseCeiling | None
    influence: NDArray[np.float64]

    @property
    def kind(self) -> Kind:
        """Which correlation."""
        return self.regime.kind

    @property
    def num_subsets(self) -> int:
        """M, the number of rows scored on."""
        return self.regime.num_subsets

    @property
    def num_targets(self) -> int:
        """T, defined or not."""
        return self.correlation.size

    @property
    def num_scored(self) -> int:
        """How many targets have a correlation."""
        return int((~np.isnan(self.correlation)).sum())

    @property
    def share_of_ceiling(self) -> float:
        """The mean as a share of the noise ceiling; NaN without one."""
        if self.ceiling is None or not self.ceiling.mean > 0:
            return np.nan
        return self.mean / self.ceiling.mean

    @property
    def share_interval(self) -> Interval | None:
        """Interval of the share of the ceiling, over the same rows; None without a ceiling."""
        if self.ceiling is None or self.interval is None:
            return None
        return ratio_interval(
            (self.mean, self.influence),
            (self.ceiling.mean, self.ceiling.influence),
            self.interval.level,
        )

    def __repr__(self) -> str:
        left_out = self.num_targets - self.num_scored
        note = f" ({left_out:,} left out: constant or NaN)" if left_out else ""
        fitted = " ON ROWS THAT WERE FITTED" if self.includes_fitted else ""
        lines = [
            f"LDS {self.mean:.3f}{'' if self.interval is None else f' {self.interval}'}{fitted}",
            f"mean of {self.num_scored:,} targets{note}: {self.regime}",
            f"p < .05 for {self.share_significant():.0%} of the targets",
        ]
        if self.ceiling is not None:
            lines.append(
                f"{self.share_of_ceiling:.0%} {self.share_interval or ''} of the noise ceiling "
                f"{self.ceiling.mean:.3f} {self.ceiling.interval}"
            )
        return "\n".join(lines)

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
    transposed: bool = False,
    nonfinite: NonFinite = "keep",
    fitted: Any = None,
    allow_fitted_rows: bool = False,
    output: str | None = None,
    seeds: str | None = None,
    ceiling: NoiseCeiling | None = None,
    interval: bool = True,
    level: float = 0.95,
    quiet: bool = True,
    resamples: int | None = None,
    seed: int | None = None,
) -> LDSResult:
    """Correlate summed scores of subsets with the outputs measured on them.

    For target t, the prediction for subset S is the sum of ``scores[n, t]`` over n in S (Park et
    al. 2023, eq. 4). Sums are exact before ranking, so that equal sums tie. Targets are handled
    in blocks: scores, masks and margins may be memory-mapped arrays larger than memory.

    Parameters
    ----------
    scores : real [N, T], or Attributions
        Array, tensor, memmap or sparse matrix. A positive score says that keeping example n makes
        output t *better*.
    masks : bool or 0/1 [M, N], or a list of M index arrays
        True = kept (in the training set, not ablated). See
        :func:`coarlib.scoring.masks_from_indices` for rectangular index arrays.
    margins : real [M, T] or [M, R, T]
        Measured outputs; the runs of a subset are averaged first, leaving out NaN. Rows that hold
        nothing but NaN are left out, and named by a :class:`RowsLeftOutWarning`.
    kind : "spearman", "pearson" or "kendall"
    higher_is_better : bool
        Whether a larger output is better, as for margins. False for losses: the outputs are
        negated. Nothing is guessed.
    transposed : bool
        Whether the scores are [T, N]. Where N = T, a shape cannot tell.
    nonfinite : "keep", "targets" or "alone"
        What becomes of targets with outputs that are NaN or infinite in some rows. ``"keep"``:
        NaN leaves a target without a correlation, and infinite outputs rank as very large ones.
        ``"targets"``: such targets have no correlation. ``"alone"``: these rows are left out for
        that target alone. An :class:`InfiniteOutputsWarning` names the targets.
    fitted : uint64 [n], optional
        Digests of the masks on which the scores were fitted
        (:func:`coarlib.masks.digests.mask_digests`); taken from Attributions. Such rows are left
        out, and named by a :class:`RowsLeftOutWarning`.
    allow_fitted_rows : bool
        Score on them nevertheless; the result says so.
    output, seeds : str, optional
        For the :class:`Regime`: name of the output; "same" or "fresh" seeds as the attributed
        model.
    ceiling : NoiseCeiling, optional
        Of these rows and this correlation, where it is known already, so that it is not computed
        for every method.
    interval : bool
        Estimate intervals and the ceiling.
    level : float
        Coverage of the intervals.
    quiet : bool
        Show no progress.
    resamples, seed : int, optional
        Of earlier versions, which drew at random for intervals: ``resamples=0`` is
        ``interval=False``, anything else has no effect, says a FutureWarning.

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
    check_nonfinite(nonfinite)
    if not (ceiling is None or isinstance(ceiling, NoiseCeiling)):
        raise ScoringError(
            f"ceiling is a NoiseCeiling, as noise_ceiling returns it, not {type(ceiling).__name__}"
        )
    if resamples is not None or seed is not None:
        drawn = "nothing is drawn for intervals any more: resamples and seed have no effect"
        warnings.warn(f"{drawn}, but resamples=0 is interval=False", FutureWarning, stacklevel=2)
        interval = interval and resamples != 0
    given = scored_rows(
        scores,
        masks,
        margins,
        transposed=transposed,
        fitted=fitted,
        allow_fitted_rows=allow_fitted_rows,
    )
    given.warn()
    count, targets = len(given.rows), given.scores.shape[1]
    mean = MeanInfluence(count, kind) if interval else None
    block = BLOCK_BYTES // (8 * max(*given.masks.shape, 1))
    kept = given.used_masks()
    parts: list[tuple[Correlation, _Flags]] = []
    with Progress(targets, "scoring", "target", quiet=quiet) as progress:
        for piece in blocks(targets, block):
            predicted = subset_sums(given.scores[:, piece], kept)
            outputs = given.used_outputs(piece)
            flags = _Flags.of(predicted, outputs)
            true = mean_over_runs(outputs if nonfinite == "keep" else without_infinite(outputs))
            found = _score_block(predicted, true, kind, higher_is_better, mean)
            if nonfinite == "alone":
                for these, rows in targets_by_rows(found.has_nan & ~flags.nan_score, true):
                    some = predicted[these][:, rows], true[rows][:, these]
                    found.put(these, _score_block(*some, kind, higher_is_better, mean, rows))
            parts.append((found, flags))
            progress.advance(predicted.shape[0])
    result, flags = join([part for part, _ in parts]), _Flags.join([part for _, part in parts])
    flags.warn(result, nonfinite)
    defined = ~np.isnan(result.r)
    if ceiling is None and interval and given.outputs.ndim == 3 and given.outputs.shape[1] > 1:
        ceiling = _ceiling(given, kind, level)
    return LDSResult(
        correlation=result.r,
        p_value=result.p,
        mean=float(result.r[defined].mean()) if defined.any() else np.nan,
        interval=mean.interval(level) if mean else None,
        num_constant=int(result.constant.sum()),
        num_nan_scores=int((result.has_nan & flags.nan_score).sum()),
        num_nan_outputs=int((result.has_nan & ~flags.nan_score).sum()),
        num_infinite=int(flags.infinite.sum()),
        rows=given.rows,
        failed_rows=given.failed,
        fitted_rows=given.fitted,
        includes_fitted=given.includes_fitted,
        regime=regime_of(
            given.masks, given.outputs, given.rows, kind=kind, output=output, seeds=seeds
        ),
        ceiling=ceiling,
        influence=mean.influence if mean else np.empty(0),
    )


def _ceiling(given: ScoredRows, kind: Kind, level: float) -> NoiseCeiling:
    with warnings.catch_warnings():  # the LDS has named the targets
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        return noise_ceiling(given.used_outputs(), kind, level=level)


@dataclass(frozen=True)
class _Flags:
    """Why targets are undefined or odd, bool [T] each."""

    nan_score: NDArray[np.bool_]
    flat_score: NDArray[np.bool_]
    infinite: NDArray[np.bool_]

    @classmethod
    def of(cls, predicted: NDArray[np.float64], true: NDArray[Any]) -> _Flags:
        """Look at predictions [t, M] and outputs [M, t] or [M, R, t]."""
        infinite = np.zeros(len(predicted), dtype=bool)
        if true.dtype.kind == "f":
            infinite = np.isinf(true).any(axis=tuple(range(true.ndim - 1)))
        flat = np.asarray((predicted == predicted[:, :1]).all(axis=1))
        return cls(np.asarray(np.isnan(predicted).any(axis=1)), flat, infinite)

    @classmethod
    def join(cls, parts: list[_Flags]) -> _Flags:
        """Put successive blocks of targets together."""
        none = np.zeros(0, dtype=bool)
        return cls(
            *(
                np.concatenate([none, *(getattr(part, field.name) for part in parts)])
                for field in fields(cls)
            )
        )

    def warn(self, result: Correlation, nonfinite: NonFinite) -> None:
        """Name undefined and infinite targets, at the caller of :func:`lds`."""
        warn_of_infinite(self.infinite & ~np.isnan(result.r), nonfinite, stacklevel=3)
        infinite = self.infinite & ~self.nan_score
        flat = result.constant & ~infinite & self.flat_score
        reasons = [
            f"{int(flags.sum())} of {flags.size} targets {why} (target "
            f"{named(np.flatnonzero(flags))})"
            for flags, why in (
                (result.has_nan & self.nan_score, "have scores that are not finite"),
                (result.has_nan & ~self.nan_score & ~infinite, "have NaN outputs"),
                (np.isnan(result.r) & infinite, "have infinite outputs"),
                (flat, "have scores whose sums over the subsets never vary"),
                (result.constant & ~infinite & ~flat, "have outputs that never vary"),
            )
            if flags.any()
        ]
        if reasons:
            words = "no correlation (NaN): " + " and ".join(reasons)
            warnings.warn(words, UndefinedCorrelationWarning, stacklevel=3)


def _score_block(  # noqa: PLR0917
    predicted: NDArray[np.float64],
    true: NDArray[Any],
    kind: Kind,
    higher_is_better: bool,
    mean: MeanInfluence | None,
    rows: NDArray[np.bool_] | None = None,
) -> Correlation:
    """Correlate predictions [B, M] with outputs [M, B], which are those of some rows."""
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
    if mean is not None:
        mean.add(a, b, result.r, rows)
    return result

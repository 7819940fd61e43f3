"""How well attributions predict rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import card, histogram
from coarlib.errors import RegressionError
from coarlib.regression.problem import target_blocks
from coarlib.regression.rows import ArrayRows, RowSource
from coarlib.regression.rows.blocks import read_blocks
from coarlib.statistics.ranks import doubled_ranks

__all__ = ["HeldOut", "score_arrays", "score_rows"]

RESAMPLES = 200
LEVEL = 0.95
SCORE_TARGETS = 512


@dataclass(frozen=True)
class HeldOut:
    """Scores of predictions on held-out rows; NaN for a target (or prediction) that never varies.

    Attributes
    ----------
    num_rows : int
        Held-out rows with finite outputs.
    pearson, spearman, slope, r_squared : float64 [T]
        Correlations of prediction and output; slope of output on prediction (1 is calibrated);
        share of the variance explained.
    low, high : float64 [T]
        95% bootstrap interval (over rows) of each Pearson correlation.
    mean, mean_low, mean_high : float
        Mean Pearson correlation over targets with its 95% bootstrap interval over rows.
    replicas : float64 [R]
        Its bootstrap replicas (not saved).
    """

    num_rows: int
    pearson: NDArray[np.float64]
    spearman: NDArray[np.float64]
    slope: NDArray[np.float64]
    r_squared: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: float
    mean_low: float
    mean_high: float
    replicas: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def mean_spearman(self) -> float:
        """Mean Spearman correlation over the targets that have one."""
        return _mean(self.spearman)

    @property
    def median_slope(self) -> float:
        """Median slope of output on prediction; below 1 the predictions are too extreme."""
        slopes = self.slope[~np.isnan(self.slope)]
        return float(np.median(slopes)) if len(slopes) else float("nan")

    def __repr__(self) -> str:
        words = f"held-out correlation {self.mean:.3f} [{self.mean_low:.3f}, {self.mean_high:.3f}]"
        words += f" over {self.num_rows:,} rows"
        if self.mean_low <= 0 <= self.mean_high:
            words += ": the interval contains 0, so these predict nothing yet"
        return words

    def _repr_html_(self) -> str:
        return card(repr(self), histogram(self.pearson, "correlation of the targets"))

    def __str__(self) -> str:
        unscored = int(np.isnan(self.pearson).sum())
        note = f", {unscored} targets without a score (they never vary)" if unscored else ""
        return (
            f"held-out correlation {self.mean:.3f} [{self.mean_low:.3f}, {self.mean_high:.3f}] "
            f"(mean over {len(self.pearson) - unscored} targets, {self.num_rows} rows, 95% "
            f"bootstrap interval over rows; Spearman {self.mean_spearman:.3f}, slope of output on "
            f"prediction {self.median_slope:.2f}){note}"
        )


def score_arrays(
    predictions: NDArray[Any], outputs: NDArray[Any], seed: int = 0, resamples: int = RESAMPLES
) -> HeldOut:
    """Score predictions [K, T] against outputs [K, T]; rows with a non-finite output are dropped.

    Raises
    ------
    RegressionError
        If shapes differ or fewer than two rows are finite.
    """
    if predictions.shape != outputs.shape:
        raise RegressionError(
            f"predictions {list(predictions.shape)} and outputs {list(outputs.shape)} differ"
        )
    finite = np.isfinite(outputs).all(1)
    if not finite.all():
        predictions, outputs = predictions[finite], outputs[finite]
    rows, targets = outputs.shape
    if rows < 2:
        raise RegressionError(f"{rows} held-out rows are too few to score; at least 2 are needed")
    drawn = np.random.Generator(np.random.Philox(seed)).integers(0, rows, (resamples, rows))
    weights = np.stack([np.bincount(d, minlength=rows) for d in drawn]).astype(np.float32)
    scores = np.full((4, targets), np.nan)
    replicas = np.full((resamples, targets), np.nan)
    for chosen in target_blocks(targets, SCORE_TARGETS):
        p = _centred(predictions[:, chosen])
        y = _centred(outputs[:, chosen])
        scores[:, chosen] = _scores(p, y)
        replicas[:, chosen] = _weighted_correlation(weights, p, y)
    tail = 100 * (1 - LEVEL) / 2
    scored = ~np.isnan(scores[0])
    low, high = np.full(targets, np.nan), np.full(targets, np.nan)
    mean_low = mean_high = float("nan")
    means = np.full(resamples, np.nan)
    if scored.any():
        low[scored], high[scored] = _percentiles(replicas[:, scored], tail)
        means = np.array([_mean(replica) for replica in replicas])
        mean_low, mean_high = (float(v) for v in _percentiles(means[:, None], tail)[:, 0])
    pearson, spearman, slope, r_squared = scores
    mean = _mean(pearson)
    return HeldOut(
        rows, pearson, spearman, slope, r_squared, low, high, mean, mean_low, mean_high, means
    )


def score_rows(
    predict: Callable[[NDArray[np.bool_]], NDArray[Any]],
    source: RowSource,
    positions: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> HeldOut:
    """Score a predictor ``masks [B, N] -> [B, T]`` on rows of a source (see `score_arrays`)."""
    pairs = [(predict(m), y) for _, m, y in read_blocks(source, positions)]
    if not pairs:
        raise RegressionError("there are no held-out rows to score")
    predictions = np.concatenate([np.asarray(p, np.float32) for p, _ in pairs])
    outputs = np.concatenate([y for _, y in pairs])
    return score_arrays(predictions, outputs, seed)


def score_held_out(
    predict: Callable[[NDArray[np.bool_]], NDArray[Any]],
    masks: NDArray[Any],
    outputs: NDArray[Any],
    seed: int = 0,
) -> HeldOut:
    """Score a predictor on masks [K, N] and outputs [K, T] in memory."""
    return score_rows(predict, ArrayRows(masks, outputs), seed=seed)


def _centred(values: NDArray[Any]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    constant = (wide == wide[:1]).all(0)
    wide -= wide.mean(0)
    wide[:, constant] = 0
    return wide


def _scores(p: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson, Spearman, slope and R² of centred columns, [4, t]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pp, yy, py = (p * p).sum(0), (y * y).sum(0), (p * y).sum(0)
        pearson = py / np.sqrt(pp * yy)
        slope = np.where(yy > 0, py / pp, np.nan)
        ranks_p, ranks_y = doubled_ranks(p)[0].astype(float), doubled_ranks(y)[0].astype(float)
        spearman = (ranks_p * ranks_y).sum(1) / np.sqrt((ranks_p**2).sum(1) * (ranks_y**2).sum(1))
        # Means were removed from both, so this ignores an offset, as a correlation does.
        r_squared = np.where(yy > 0, 1 - ((y - p) ** 2).sum(0) / yy, np.nan)
    return np.stack([pearson, spearman, slope, r_squared])


def _weighted_correlation(
    weights: NDArray[np.float32], p: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson correlations of resampled rows [R, t], from multiplicities [R, K]."""
    spread_p, spread_y = np.sqrt((p * p).mean(0)), np.sqrt((y * y).mean(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        p, y = (p / spread_p).astype(np.float32), (y / spread_y).astype(np.float32)
        n = np.float32(len(p))
        mean_p, mean_y = weights @ p / n, weights @ y / n
        cov = weights @ (p * y) / n - mean_p * mean_y
        var = (weights @ (p * p) / n - mean_p**2) * (weights @ (y * y) / n - mean_y**2)
        correlation = np.where(var > 1e-10, cov / np.sqrt(var), np.nan)
    return np.asarray(np.clip(correlation, -1, 1), np.float64)


def _percentiles(values: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """Lower and upper percentile of each column, ignoring NaN where some are finite, [2, t]."""
    result = np.full((2, values.shape[1]), np.nan)
    some = ~np.isnan(values).all(0)
    result[:, some] = np.nanpercentile(values[:, some], [tail, 100 - tail], axis=0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if len(finite) else float("nan")

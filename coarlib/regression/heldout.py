"""How well attributions predict rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import card, histogram
from coarlib.errors import RegressionError
from coarlib.regression.problem import target_blocks
from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import read_blocks
from coarlib.statistics.influence import influences
from coarlib.statistics.intervals import FEWEST_ROWS, Interval, correlation_limits
from coarlib.statistics.ranks import doubled_ranks

__all__ = ["HeldOut", "score_arrays", "score_rows"]

LEVEL = 0.95
SCORE_TARGETS = 512
_LEAST_SPREAD = 1e-9  # 1 - r²: a correlation of 1 stays what it is
SCORE_FIELDS = ("pearson", "spearman", "slope", "r_squared", "low", "high")


@dataclass(frozen=True)
class HeldOut:
    """Scores of predictions on held-out rows; NaN for a target that never varies.

    A target that varies while its predictions do not has correlation 0 (and no slope), so that all
    predictors are judged on the same targets.

    Attributes
    ----------
    num_rows : int
        Held-out rows with finite outputs.
    pearson, spearman, slope, r_squared : float64 [T]
        Correlations of prediction and output; slope of output on prediction (1 is calibrated);
        share of the variance explained.
    low, high : float64 [T]
        95% interval (over rows) of each Pearson correlation; NaN from fewer than 20 rows.
    mean, mean_low, mean_high : float
        Mean Pearson correlation over targets with its 95% interval over rows.
    influence : float64 [K]
        Of each row on the mean, see `coarlib.statistics.influence` (not saved; NaN from too few
        rows).
    unit : str
        What is held out: rows, or trials.
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
    influence: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)
    unit: str = "rows"

    def summary(self) -> dict[str, Any]:
        """Return what is no array, as JSON values."""
        return {
            "num_rows": self.num_rows,
            "unit": self.unit,
            "mean_pearson": self.mean,
            "interval_95": [self.mean_low, self.mean_high],
            "mean_spearman": self.mean_spearman,
            "median_slope": self.median_slope,
        }

    @classmethod
    def of_summary(cls, held: dict[str, Any], scores: dict[str, NDArray[Any]]) -> HeldOut:
        """Make it of a :meth:`summary` and the arrays of :data:`SCORE_FIELDS`."""
        mean, low, high = (
            float("nan") if value is None else float(value)
            for value in (held["mean_pearson"], *held["interval_95"])
        )
        arrays: dict[str, Any] = {name: scores[name] for name in SCORE_FIELDS}
        ends: dict[str, Any] = {"mean": mean, "mean_low": low, "mean_high": high}
        return cls(held["num_rows"], **arrays, **ends, unit=str(held.get("unit", "rows")))

    def shifted(self, by: float, influence: NDArray[np.float64]) -> HeldOut:
        """Return the same with the mean so much higher, the mean of given influences.

        All move alike on Fisher's scale, on which correlations have no end and intervals a width
        that does not depend on where they are.
        """
        step = by / max(1 - self.mean**2, _LEAST_SPREAD)
        moved: dict[str, Any] = {
            name: _moved(getattr(self, name), step)
            for name in ("pearson", "spearman", "low", "high")
        }
        limits = correlation_limits(self.mean, influence, LEVEL)
        low, high = (float(_moved(end, step)) for end in limits)
        ends: dict[str, Any] = {
            "mean": _mean(moved["pearson"]),
            "mean_low": low,
            "mean_high": high,
            "influence": influence,
        }
        return replace(self, **moved, **ends)

    def without_intervals(self) -> HeldOut:
        """Return the same where too little varies for intervals."""
        unknown = {name: np.full_like(getattr(self, name), np.nan)
                   for name in ("low", "high", "influence")}  # fmt: skip
        return replace(self, mean_low=np.nan, mean_high=np.nan, **unknown)

    @property
    def interval(self) -> Interval:
        """95% interval of the mean Pearson correlation over rows."""
        return Interval(self.mean_low, self.mean_high, LEVEL, self.num_rows)

    @property
    def predicts_nothing(self) -> bool:
        """Whether the interval of the mean correlation contains 0, or no prediction varies."""
        silent = bool((self.pearson[self._scored] == 0).all())
        return silent or bool(self.mean_low <= 0 <= self.mean_high)

    @property
    def _verdict(self) -> str:
        why = "the interval contains 0" if self.mean_low <= 0 else "no prediction varies"
        return f"{why}, so these attributions predict nothing yet"

    @property
    def _scored(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.pearson)

    @property
    def mean_spearman(self) -> float:
        """Mean Spearman correlation over the targets that have one."""
        return _mean(self.spearman)

    @property
    def median_slope(self) -> float:
        """Median slope of output on prediction; below 1 the predictions are too extreme."""
        slopes = self.slope[~np.isnan(self.slope)]
        return float(np.median(slopes)) if len(slopes) else float("nan")

    @property
    def slope_error(self) -> float:
        """Root mean square distance of the targets' slopes from 1; 0 where there are none."""
        slopes = self.slope[~np.isnan(self.slope)]
        return float(np.sqrt(np.square(slopes - 1).mean())) if len(slopes) else 0.0

    def __repr__(self) -> str:
        words = f"held-out correlation {self.mean:.3f} {self.interval} over {self.num_rows:,} "
        return words + self.unit + (f": {self._verdict}" if self.predicts_nothing else "")

    def _repr_html_(self) -> str:
        return card(repr(self), histogram(self.pearson, "correlation of the targets"))

    def __str__(self) -> str:
        scored = self._scored
        note = ""
        if unscored := int((~scored).sum()):
            note = f", {unscored} targets without a score (they never vary)"
        if silent := int((scored & np.isnan(self.slope)).sum()):
            note += f", {silent} targets whose predictions never vary (they count as 0)"
        if self.predicts_nothing:
            note += f": {self._verdict}"
        return (
            f"held-out correlation {self.mean:.3f} {self.interval} (mean over {int(scored.sum())} "
            f"targets, {self.num_rows} {self.unit}, 95% interval over {self.unit}; Spearman "
            f"{self.mean_spearman:.3f}, slope of output on prediction {self.median_slope:.2f})"
            f"{note}"
        )


def score_arrays(predictions: NDArray[Any], outputs: NDArray[Any]) -> HeldOut:
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
    scores, limits = np.full((4, targets), np.nan), np.full((2, targets), np.nan)
    influence = np.zeros(rows) if rows >= FEWEST_ROWS else np.full(rows, np.nan)
    for chosen in target_blocks(targets, SCORE_TARGETS):
        p = _centred(predictions[:, chosen])
        y = _centred(outputs[:, chosen])
        scores[:, chosen] = _scores(p, y)
        told = np.flatnonzero(~np.isnan(scores[2, chosen]))  # both vary
        if rows >= FEWEST_ROWS and len(told):
            found = influences(p.T[told], y.T[told], "pearson")
            limits[:, chosen][:, told] = correlation_limits(scores[0, chosen][told], found, LEVEL)
            influence += found.sum(axis=0)
    pearson, spearman, slope, r_squared = scores
    mean = _mean(pearson)
    influence /= max(int((~np.isnan(pearson)).sum()), 1)
    low, high = correlation_limits(mean, influence, LEVEL)
    if np.isnan(slope).all():  # nothing predicted varies: there is no spread to tell of
        low = high = np.full((), np.nan)
    bounds = float(low), float(high)
    return HeldOut(
        rows, pearson, spearman, slope, r_squared, limits[0], limits[1], mean, *bounds, influence
    )


def score_rows(
    predict: Callable[[NDArray[np.bool_]], NDArray[Any]],
    source: RowSource,
    positions: NDArray[np.int64] | None = None,
) -> HeldOut:
    """Score a predictor ``masks [B, N] -> [B, T]`` on rows of a source (see `score_arrays`)."""
    pairs = [(predict(m), y) for _, m, y in read_blocks(source, positions)]
    if not pairs:
        raise RegressionError("there are no held-out rows to score")
    predictions = np.concatenate([p for p, _ in pairs])
    outputs = np.concatenate([y for _, y in pairs])
    return score_arrays(predictions, outputs)


def _moved(correlations: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.tanh(np.arctanh(np.clip(correlations, -1, 1)) + step)


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
        silent = (yy > 0) & (pp == 0)
        pearson = np.where(silent, 0, py / np.sqrt(pp * yy))
        slope = np.where((yy > 0) & (pp > 0), py / pp, np.nan)
        ranks_p, ranks_y = doubled_ranks(p)[0].astype(float), doubled_ranks(y)[0].astype(float)
        spearman = (ranks_p * ranks_y).sum(1) / np.sqrt((ranks_p**2).sum(1) * (ranks_y**2).sum(1))
        spearman[silent] = 0
        # Means were removed from both, so this ignores an offset, as a correlation does.
        r_squared = np.where(yy > 0, 1 - ((y - p) ** 2).sum(0) / yy, np.nan)
    return np.stack([pearson, spearman, slope, r_squared])


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if len(finite) else float("nan")

"""Confidence intervals by resampling rows.

The rows (subsets, ablations) are what was sampled, so they are resampled: all targets of a row
stay together, and ranks are taken anew in every resample.

A resample is a random three quarters of the rows, drawn without replacement (the delete-d jackknife
of Shao & Wu 1989). A row that is drawn twice, as in the textbook bootstrap, ties with itself and
lowers a correlation by an amount of order 1/M that is the same for every target: averaging over
targets shrinks the spread of the mean but not that shift, so percentile and BCa intervals miss when
there are many targets, and intervals moved back onto the estimate are too wide. Subsamples repeat
nothing and are all of one size, and the mean over one scatters about the mean over all rows with a
known multiple of the latter's own variance; so, to first order, does all that depends on means.

The interval is Student's, on Fisher's scale ``arctanh(r)`` with M - 1 degrees of freedom, for the
expected score over M random rows. docs/scoring.md has its simulated coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, blocks
from coarlib.statistics.correlation import Kind, check_kind, correlate
from coarlib.statistics.ranks import doubled_ranks
from coarlib.statistics.replicates import REPLICATES

__all__ = [
    "FEWEST_ROWS",
    "Interval",
    "RowBootstrap",
    "bootstrap_interval",
    "correlation_limits",
    "difference_interval",
    "ratio_interval",
    "rows_of",
    "spread_of_subsamples",
    "student",
    "subsamples",
]

FEWEST_ROWS = 20  # with fewer, simulated coverage leaves 93 to 97%


@dataclass(frozen=True)
class Interval:
    """A confidence interval; ``low`` and ``high`` are NaN where it cannot be estimated.

    Attributes
    ----------
    low, high : float
    level : float
        Nominal coverage, 0.95 for a 95% interval.
    num_rows : int
        Rows that were resampled; there is no interval from fewer than 20.
    """

    low: float
    high: float
    level: float
    num_rows: int

    def __str__(self) -> str:
        if self.num_rows < FEWEST_ROWS:
            return "(too few rows for an interval)"
        return "(no interval)" if np.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"


class RowBootstrap:
    """Replicates of the mean correlation over targets, accumulated over blocks of targets.

    Parameters
    ----------
    count : int
        M, the number of rows.
    kind : "spearman", "pearson" or "kendall"
    resamples : int
    seed : int
        Two scores bootstrapped with one seed over the same rows see the same resamples, so the
        difference of their :attr:`replicates` gives an interval for the difference.
    """

    def __init__(
        self, count: int, kind: Kind = "spearman", *, resamples: int = 1000, seed: int = 0
    ) -> None:
        check_kind(kind)
        if resamples < 2:
            raise ScoringError(f"an interval needs at least 2 resamples, not {resamples}")
        self.kind, self.count, self.resamples = kind, count, resamples
        self._weights = subsamples(count, resamples if count >= FEWEST_ROWS else 0, seed)
        self._sums = np.zeros(len(self._weights))
        self._numbers = np.zeros(len(self._weights), dtype=np.int64)
        self._estimate_sum, self._estimate_number = 0.0, 0

    def add(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        r: NDArray[np.float64],
        rows: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count further targets in.

        Parameters
        ----------
        a, b : [T, M]
            Doubled ranks (int32) for a rank correlation, values (float64) for Pearson's.
        r : float64 [T]
            Their correlations on all rows; a target whose entry is NaN is left out of the mean. A
            target that becomes constant in a resample is left out of that resample's mean.
        rows : bool [count], optional
            The M rows that these targets have; all by default.
        """
        defined = ~np.isnan(r)
        if not defined.all():
            a, b, r = a[defined], b[defined], r[defined]
        self._estimate_sum += float(r.sum())
        self._estimate_number += r.size
        if r.size and len(self._weights):
            weights = (
                self._weights if rows is None else np.ascontiguousarray(self._weights[:, rows])
            )
            REPLICATES[self.kind](a, b, weights, self._sums, self._numbers)

    @property
    def estimate(self) -> float:
        """The mean correlation over the defined targets; NaN if there is none."""
        return self._estimate_sum / self._estimate_number if self._estimate_number else np.nan

    @property
    def replicates(self) -> NDArray[np.float64]:
        """What the estimate could have been, float64 [resamples].

        The mean over each subsample of the rows, moved and scaled to the estimate's own mean and
        spread; NaN from fewer than 20 rows.
        """
        if not len(self._weights):
            return np.full(self.resamples, np.nan)
        with np.errstate(invalid="ignore"):
            return spread_of_subsamples(self.estimate, self._sums / self._numbers, self.count)

    def interval(self, level: float = 0.95) -> Interval:
        """Return the interval of the mean correlation at a nominal coverage of ``level``."""
        low, high = correlation_limits(self.estimate, self.replicates, self.count, level)
        return Interval(float(low), float(high), level, self.count)


def bootstrap_interval(
    a: Any,
    b: Any,
    kind: Kind = "spearman",
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean correlation over targets, resampling the M rows.

    Parameters
    ----------
    a, b : real [M, T]
        Predicted and true outputs of M rows.
    kind : "spearman", "pearson" or "kendall"
    resamples, level, seed
        As :class:`RowBootstrap`.

    Raises
    ------
    ScoringError
        If shapes or options are wrong.
    """
    a, b = as_array(a, "a"), as_array(b, "b")
    result = correlate(a, b, kind)
    count, targets = a.shape
    bootstrap = RowBootstrap(count, kind, resamples=resamples, seed=seed)
    for piece in blocks(targets, BLOCK_BYTES // (16 * max(count, 1))):
        rows = rows_of(a[:, piece], kind), rows_of(b[:, piece], kind)
        bootstrap.add(*rows, result.r[piece])
    return bootstrap.interval(level)


def rows_of(values: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return what :meth:`RowBootstrap.add` takes for columns ``values`` [M, T]."""
    if kind == "pearson":
        return np.ascontiguousarray(values.T, dtype=np.float64)
    return doubled_ranks(values)[0]


def subsamples(count: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """Which rows are in each subsample, uint8 0 or 1 [resamples, count]."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = np.zeros((resamples, count), dtype=np.uint8)
    for resample in weights:
        resample[generator.permutation(count)[: _kept(count)]] = 1
    return weights


def spread_of_subsamples(
    estimate: Any, replicates: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Move and scale replicates from subsamples of the rows to an estimate from all of them.

    Parameters
    ----------
    estimate : float64 [...]
    replicates : float64 [B, ...]
        The same over each subsample; a NaN is left out.
    count : int
        M. The factor is the one by which a mean over fewer rows scatters too little or too much.
    """
    kept = _kept(count)
    defined = ~np.isnan(replicates)
    mean = np.where(defined, replicates, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    return np.asarray(estimate + np.sqrt(kept / (count - kept)) * (replicates - mean))


def _kept(count: int) -> int:
    """Rows of a subsample: three quarters. Half of them overstate the spread of near-perfect ranks,
    nine tenths understate it where a noise that targets share is skewed."""
    return 3 * count // 4


def student(count: int, level: float) -> float:
    """Half-width of an interval in standard errors: Student's t with ``count - 1`` degrees."""
    if not 0 < level < 1:
        raise ScoringError(f"the level of an interval is between 0 and 1, not {level}")
    return float(special.stdtrit(max(count - 1, 1), (1 + level) / 2))


def correlation_limits(
    estimate: Any, replicates: NDArray[np.float64], count: int, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limits for correlations from their replicates, symmetric on Fisher's scale.

    Parameters
    ----------
    estimate : float64 [...]
    replicates : float64 [B, ...]
        As :attr:`RowBootstrap.replicates`.
    count : int
        M, the number of rows.

    Returns
    -------
    low, high : float64 [...]
        NaN where the estimate is undefined, or fewer than half of the replicates are defined.
    """
    width = student(count, level)
    r = np.asarray(estimate, dtype=np.float64)
    error = _deviation(replicates)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(error > 0, width * error / (1 - r**2), 0 * error)
        z = np.arctanh(r)
        low, high = np.tanh(z - step), np.tanh(z + step)
    exact = (step == 0) & ~np.isnan(r)  # every subsample has the estimate's own correlation
    return np.where(exact, r, low), np.where(exact, r, high)


def difference_interval(
    difference: float, replicates: NDArray[np.float64], count: int, level: float = 0.95
) -> tuple[Interval, float]:
    """Interval and two-sided p-value of a difference of two means over the same rows.

    Parameters
    ----------
    difference : float
    replicates : float64 [B]
        Differences of paired :attr:`RowBootstrap.replicates`.
    count : int
        M, the number of rows.

    Returns
    -------
    interval : Interval
    p : float
        Of no difference, by Student's t; NaN where there is no interval.
    """
    error = float(_deviation(replicates))
    step = student(count, level) * error
    interval = Interval(difference - step, difference + step, level, count)
    if not error > 0:  # nothing varies, or nothing is known
        return interval, 1.0 if error == 0 and difference == 0 else np.nan if error != 0 else 0.0
    return interval, float(2 * special.stdtr(count - 1, -abs(difference) / error))


def ratio_interval(
    top: tuple[float, NDArray[np.float64]],
    bottom: tuple[float, NDArray[np.float64]],
    count: int,
    level: float = 0.95,
) -> Interval:
    """Interval of a ratio of two estimates with paired replicates, by linearisation.

    Parameters
    ----------
    top, bottom : (estimate, replicates [B])
        Where one has more replicates than the other, its first ones are taken.
    """
    size = min(len(top[1]), len(bottom[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = top[0] / bottom[0] if bottom[0] > 0 else np.nan
        moved = (top[1][:size] - top[0] - ratio * (bottom[1][:size] - bottom[0])) / bottom[0]
    step = student(count, level) * float(_deviation(moved)) if size else np.nan
    return Interval(ratio - step, ratio + step, level, count)


def _deviation(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over axis 0 of the defined replicates; NaN where most are not."""
    defined = ~np.isnan(replicates)
    number = defined.sum(axis=0)
    mean = np.where(defined, replicates, 0).sum(axis=0) / np.maximum(number, 1)
    squares = (np.where(defined, replicates - mean, 0) ** 2).sum(axis=0)
    enough = (number >= 2) & (2 * number >= len(replicates))
    return np.sqrt(np.where(enough, squares / np.maximum(number - 1, 1), np.nan))

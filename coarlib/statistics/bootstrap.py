"""Confidence intervals by resampling rows.

The rows (subsets, ablations) are what was sampled, so they are resampled: all targets of a row
stay together, and ranks are taken anew in every resample. A resample is a vector of row weights,
and since the order of the values is known already, ranking a resample needs counting, not sorting.

Three kinds of interval. A resample repeats rows, which lowers a correlation by an amount of order
1/M that is the same for every target: averaging over targets shrinks the spread of the mean but not
this shift, so that with many targets the textbook intervals miss (simulated coverage at M = 100,
T = 1,000: percentile 8%, BCa 1%). ``centred``, the default, takes the shift out (97%, and 93 to 97%
for all numbers of targets tried): its limits are the quantiles of the replicates, moved so that
their mean is the estimate. ``percentile`` and ``bca`` (Efron 1987) are as in the textbooks and in
scipy, for comparison and for single targets.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, blocks
from coarlib.statistics.correlation import Kind, check_kind, correlate
from coarlib.statistics.ranks import doubled_ranks
from coarlib.statistics.replicates import REPLICATES

__all__ = [
    "Interval",
    "IntervalMethod",
    "RowBootstrap",
    "UndefinedIntervalWarning",
    "bootstrap_interval",
    "bootstrap_mean_interval",
]

IntervalMethod = Literal["centred", "percentile", "bca"]
_JACKKNIFE_GROUPS = 200


class UndefinedIntervalWarning(UserWarning):
    """An interval cannot be computed by the method asked for; its limits are NaN."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval; ``low`` and ``high`` are NaN where it cannot be estimated.

    Attributes
    ----------
    low, high : float
    level : float
        Nominal coverage, 0.95 for a 95% interval.
    method : "centred", "percentile" or "bca"
    resamples : int
    """

    low: float
    high: float
    level: float
    method: IntervalMethod
    resamples: int

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


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
    method : "centred", "percentile" or "bca"
        See the module. The acceleration of BCa comes from a jackknife that leaves out one row at a
        time, or one of 200 interleaved groups of rows.
    """

    def __init__(
        self,
        count: int,
        kind: Kind = "spearman",
        *,
        resamples: int = 1000,
        seed: int = 0,
        method: IntervalMethod = "centred",
    ) -> None:
        check_kind(kind)
        _check_options(resamples, method)
        self.kind, self.method, self.resamples = kind, method, resamples
        weights = [_resampling_weights(count, resamples, seed)]
        if method == "bca":
            weights.append(_jackknife_weights(count))
        self._weights = np.concatenate(weights)
        self._sums = np.zeros(len(self._weights))
        self._numbers = np.zeros(len(self._weights), dtype=np.int64)
        self._estimate_sum, self._estimate_number = 0.0, 0

    def add(self, a: NDArray[Any], b: NDArray[Any], r: NDArray[np.float64]) -> None:
        """Count further targets in.

        Parameters
        ----------
        a, b : [T, M]
            Doubled ranks (int32) for a rank correlation, values (float64) for Pearson's.
        r : float64 [T]
            Their correlations on all rows; a target whose entry is NaN is left out of the mean. A
            target that becomes constant in a resample is left out of that resample's mean.
        """
        defined = ~np.isnan(r)
        if not defined.all():
            a, b, r = a[defined], b[defined], r[defined]
        self._estimate_sum += float(r.sum())
        self._estimate_number += r.size
        if not r.size:
            return
        REPLICATES[self.kind](a, b, self._weights, self._sums, self._numbers)

    @property
    def estimate(self) -> float:
        """The mean correlation over the defined targets; NaN if there is none."""
        return self._estimate_sum / self._estimate_number if self._estimate_number else np.nan

    @property
    def replicates(self) -> NDArray[np.float64]:
        """The mean correlation in each resample, float64 [resamples]."""
        return self._means()[: self.resamples]

    def _means(self) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return self._sums / self._numbers

    def interval(self, level: float = 0.95) -> Interval:
        """Return the interval of the mean correlation at a nominal coverage of ``level``."""
        means = self._means()
        return _interval(
            self.estimate, means[: self.resamples], means[self.resamples :], level, self.method
        )


def bootstrap_interval(
    a: Any,
    b: Any,
    kind: Kind = "spearman",
    *,
    resamples: int = 1000,
    level: float = 0.95,
    method: IntervalMethod = "centred",
    seed: int = 0,
) -> Interval:
    """Interval of the mean correlation over targets, resampling the M rows.

    Parameters
    ----------
    a, b : real [M, T]
        Predicted and true outputs of M rows.
    kind : "spearman", "pearson" or "kendall"
    resamples, level, method, seed
        As :class:`RowBootstrap`.

    Raises
    ------
    ScoringError
        If shapes or options are wrong.
    """
    a, b = as_array(a, "a"), as_array(b, "b")
    result = correlate(a, b, kind)
    count, targets = a.shape
    bootstrap = RowBootstrap(count, kind, resamples=resamples, seed=seed, method=method)
    for piece in blocks(targets, BLOCK_BYTES // (16 * max(count, 1))):
        rows = rows_of(a[:, piece], kind), rows_of(b[:, piece], kind)
        bootstrap.add(*rows, result.r[piece])
    return bootstrap.interval(level)


def rows_of(values: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return what :meth:`RowBootstrap.add` takes for columns ``values`` [M, T]."""
    if kind == "pearson":
        return np.ascontiguousarray(values.T, dtype=np.float64)
    return doubled_ranks(values)[0]


def bootstrap_mean_interval(
    values: Any,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    method: IntervalMethod = "bca",
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``values`` [n], resampling its entries; NaN entries are left out."""
    _check_options(resamples, method)
    sample = as_array(values, "values").astype(np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    if not sample.size:
        return Interval(np.nan, np.nan, level, method, resamples)
    weights = _resampling_weights(sample.size, resamples, seed)
    replicates = np.concatenate(
        [weights[piece] @ sample for piece in blocks(resamples, 2**22 // sample.size)]
    )
    jackknife = (sample.sum() - sample) / max(sample.size - 1, 1)
    return _interval(float(sample.mean()), replicates / sample.size, jackknife, level, method)


def _check_options(resamples: int, method: str) -> None:
    if method not in get_args(IntervalMethod):
        raise ScoringError(
            f"unknown interval {method!r}; there are {', '.join(get_args(IntervalMethod))}"
        )
    if resamples < 1:
        raise ScoringError(f"the number of resamples must be positive, not {resamples}")


def _resampling_weights(count: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each row is drawn in each resample, [resamples, M]."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = np.empty((resamples, count), dtype=np.uint16)
    for resample in weights:
        resample[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return weights


def _jackknife_weights(count: int) -> NDArray[np.uint16]:
    groups = min(count, _JACKKNIFE_GROUPS)
    return (np.arange(count) % groups != np.arange(groups)[:, None]).astype(np.uint16)


def _interval(
    estimate: float,
    replicates: NDArray[np.float64],
    jackknife: NDArray[np.float64],
    level: float,
    method: IntervalMethod,
) -> Interval:
    if not 0 < level < 1:
        raise ScoringError(f"the level of an interval is between 0 and 1, not {level}")
    defined = replicates[~np.isnan(replicates)]
    if not defined.size or np.isnan(estimate):
        return Interval(np.nan, np.nan, level, method, len(replicates))
    probabilities = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "centred":
        defined = defined + (estimate - defined.mean())
    elif method == "bca":
        probabilities = _bca_probabilities(estimate, defined, jackknife, probabilities)
        if np.isnan(probabilities).any():
            warnings.warn(
                "the BCa interval is undefined (NaN): all resamples lie on one side of the "
                "estimate; use method='centred'",
                UndefinedIntervalWarning,
                stacklevel=3,
            )
            return Interval(np.nan, np.nan, level, method, len(replicates))
    low, high = np.quantile(defined, probabilities)
    return Interval(float(low), float(high), level, method, len(replicates))


def _bca_probabilities(
    estimate: float,
    replicates: NDArray[np.float64],
    jackknife: NDArray[np.float64],
    probabilities: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Corrected quantile levels; NaN where all replicates lie on one side of the estimate."""
    below = (np.mean(replicates < estimate) + np.mean(replicates <= estimate)) / 2
    if below in (0, 1):
        return np.full(probabilities.shape, np.nan)
    bias = special.ndtri(below)
    change = np.nanmean(jackknife) - jackknife[~np.isnan(jackknife)]
    scale = np.sum(change**2) ** 1.5
    acceleration = np.sum(change**3) / (6 * scale) if scale > 0 else 0.0
    shifted = bias + special.ndtri(probabilities)
    return np.asarray(special.ndtr(bias + shifted / (1 - acceleration * shifted)))

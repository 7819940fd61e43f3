"""Confidence intervals of scores over rows, from the influence of each row.

The rows (subsets, ablations) are what was sampled, and all targets of a row stay together: the
influence of a row on a mean over targets is the mean of its influences. A score scatters about what
is expected of M random rows like a mean of M influences, so its interval is that of a mean:
Student's with M - 1 degrees of freedom, on Fisher's scale ``arctanh(r)``, with the skewness of the
influences taken out by Hall's monotone transformation (Hall 1992, On the removal of skewness by
transformation). Skewness matters where targets share noise: rows in which it is large pull all the
correlations down, and a symmetric interval then misses too often on one side. Nothing is drawn at
random. docs/scoring.md has the simulated coverage.
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
from coarlib.statistics.influence import influences
from coarlib.statistics.ranks import doubled_ranks

__all__ = [
    "FEWEST_ROWS",
    "Interval",
    "MeanInfluence",
    "Score",
    "correlation_interval",
    "correlation_limits",
    "difference_interval",
    "draws",
    "mean_influence",
    "ratio_interval",
    "rows_of",
    "standard_error",
]

FEWEST_ROWS = 20  # with fewer, simulated coverage leaves 93 to 97%
Score = tuple[float, NDArray[np.float64]]  # an estimate and the influences [M] of its rows
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Interval:
    """A confidence interval; ``low`` and ``high`` are NaN where it cannot be estimated.

    Attributes
    ----------
    low, high : float
    level : float
        Nominal coverage, 0.95 for a 95% interval.
    num_rows : int
        Rows that it rests on; there is no interval from fewer than 20.
    """

    low: float
    high: float
    level: float
    num_rows: int

    def __str__(self) -> str:
        if self.num_rows < FEWEST_ROWS:
            return "(too few for an interval)"
        return "(no interval)" if np.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"


class MeanInfluence:
    """Influences of the rows on a mean correlation, accumulated over blocks of targets.

    Parameters
    ----------
    count : int
        M, the number of rows.
    kind : "spearman", "pearson" or "kendall"
    """

    def __init__(self, count: int, kind: Kind = "spearman") -> None:
        check_kind(kind)
        self.kind, self.count = kind, count
        self._influence = np.zeros(count)
        self._estimate, self._number = 0.0, 0

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
            Their correlations; a target whose entry is NaN is left out of the mean.
        rows : bool [count], optional
            The M rows that these targets have; all by default.
        """
        defined = ~np.isnan(r)
        self._estimate += float(r[defined].sum())
        self._number += int(defined.sum())
        if defined.any() and self.count >= FEWEST_ROWS:
            found = influences(a[defined], b[defined], self.kind).sum(axis=0)
            self._influence[slice(None) if rows is None else rows] += (
                found * self.count / len(found)
            )

    @property
    def estimate(self) -> float:
        """The mean correlation over the defined targets; NaN if there is none."""
        return self._estimate / self._number if self._number else np.nan

    @property
    def influence(self) -> NDArray[np.float64]:
        """Influence of each row on the estimate, float64 [M]; NaN from fewer than 20 rows."""
        if self.count < FEWEST_ROWS or not self._number:
            return np.full(self.count, np.nan)
        return self._influence / self._number

    def interval(self, level: float = 0.95) -> Interval:
        """Return the interval of the mean correlation at a nominal coverage of ``level``."""
        low, high = correlation_limits(self.estimate, self.influence, level)
        return Interval(float(low), float(high), level, self.count)


def correlation_interval(
    a: Any, b: Any, kind: Kind = "spearman", *, level: float = 0.95
) -> Interval:
    """Interval of the mean correlation over targets, for the M rows being random.

    Parameters
    ----------
    a, b : real [M, T]
        Predicted and true outputs of M rows.
    kind : "spearman", "pearson" or "kendall"
    level : float

    Raises
    ------
    ScoringError
        If shapes or options are wrong.
    """
    return mean_influence(a, b, kind).interval(level)


def mean_influence(a: Any, b: Any, kind: Kind = "spearman") -> MeanInfluence:
    """Mean correlation of targets [M, T] with the influences of its rows."""
    a, b = as_array(a, "a"), as_array(b, "b")
    result = correlate(a, b, kind)
    count, targets = a.shape
    found = MeanInfluence(count, kind)
    for piece in blocks(targets, BLOCK_BYTES // (32 * max(count, 1))):
        found.add(rows_of(a[:, piece], kind), rows_of(b[:, piece], kind), result.r[piece])
    return found


def rows_of(values: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return what :meth:`MeanInfluence.add` takes for columns ``values`` [M, T]."""
    if kind == "pearson":
        return np.ascontiguousarray(values.T, dtype=np.float64)
    return doubled_ranks(values)[0]


def correlation_limits(
    estimate: Any, influence: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limits for correlations, on Fisher's scale.

    Parameters
    ----------
    estimate : float64 [...]
    influence : float64 [..., M]

    Returns
    -------
    low, high : float64 [...]
        NaN where the estimate or its influences are.
    """
    r = np.asarray(estimate, dtype=np.float64)
    down, up = _steps(influence, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        z, slope = np.arctanh(r), 1 / (1 - r**2)
        low, high = np.tanh(z - slope * down), np.tanh(z + slope * up)
    exact = (1 - r**2 <= _ROUNDING) & ~np.isnan(down)  # without any row it is ±1
    return np.where(exact, r, low), np.where(exact, r, high)


def difference_interval(
    difference: float, influence: NDArray[np.float64], level: float = 0.95
) -> tuple[Interval, float]:
    """Interval and two-sided p-value of a difference of two means over the same rows.

    Parameters
    ----------
    difference : float
    influence : float64 [M]
        The difference of the two means' influences.

    Returns
    -------
    interval : Interval
    p : float
        Of no difference, by the transformed Student's t; NaN where there is no interval.
    """
    down, up = _steps(influence, level)
    count = influence.shape[-1]
    interval = Interval(difference - float(down), difference + float(up), level, count)
    error = float(standard_error(influence))
    if not error > 0:  # nothing varies, or nothing is known
        return interval, 1.0 if error == 0 and difference == 0 else np.nan if error != 0 else 0.0
    t, skew = difference / error, float(_skewness(influence))
    symmetric = t + skew * (t**2 / 3 + 1 / 6) + skew**2 * t**3 / 27
    return interval, float(2 * special.stdtr(count - 1, -abs(symmetric)))


def ratio_interval(top: Score, bottom: Score, level: float = 0.95) -> Interval:
    """Interval of a ratio of two estimates over the same rows, by linearisation."""
    ratio = top[0] / bottom[0] if bottom[0] > 0 else np.nan
    down, up = _steps((top[1] - ratio * bottom[1]) / bottom[0], level)
    return Interval(ratio - float(down), ratio + float(up), level, len(top[1]))


def draws(
    estimates: NDArray[np.float64], influence: NDArray[np.float64], count: int, seed: int = 0
) -> NDArray[np.float64]:
    """What estimates over the same rows could have been together on other rows.

    Parameters
    ----------
    estimates : float64 [P]
    influence : float64 [P, M]

    Returns
    -------
    float64 [P, count]
    """
    rows = influence.shape[1]
    normal = np.random.default_rng(seed).standard_normal((rows, count))
    return np.asarray(estimates[:, None] + influence @ normal / np.sqrt(rows * (rows - 1)))


def standard_error(influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jackknife standard errors of estimates from influences [..., M], which sum to zero."""
    rows = influence.shape[-1]
    return np.asarray(np.sqrt((influence**2).sum(axis=-1) / max(rows * (rows - 1), 1)))


def _skewness(influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Skewness over the root of M: that of a mean of M influences."""
    squares, cubes = (influence**2).sum(axis=-1), (influence**3).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares > 0, cubes / squares**1.5, 0 * squares)


def _steps(
    influence: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far the limits lie below and above an estimate, [...].

    Hall's transformation of Student's t is ``t + c (t²/3 + 1/6) + c² t³/27``, c the skewness of the
    mean; its inverse at x is ``3 (cbrt(1 + u) - 1) / c`` with ``u = c (x - c/6)``.
    """
    if not 0 < level < 1:
        raise ScoringError(f"the level of an interval is between 0 and 1, not {level}")
    error, skew = standard_error(influence), _skewness(influence)
    x = special.stdtrit(max(influence.shape[-1] - 1, 1), (1 + level) / 2)

    def inverse(quantile: float) -> NDArray[np.float64]:
        u = skew * (quantile - skew / 6)
        root = np.cbrt(1 + u)
        return np.asarray(3 * (quantile - skew / 6) / (root**2 + root + 1))

    return error * inverse(x), -error * inverse(-x)

"""The LDS that a perfect method would reach, given how noisy the measured outputs are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, blocks
from coarlib.statistics.attenuation import expected_correlation, normal_correlation
from coarlib.statistics.correlation import Correlation, Kind, correlate, join
from coarlib.statistics.influence import influences
from coarlib.statistics.intervals import (
    FEWEST_ROWS,
    Interval,
    correlation_limits,
    rows_of,
    standard_error,
)

__all__ = ["NoiseCeiling", "noise_ceiling"]

_QUANTILES = (np.arange(64) + 0.5) / 64
_NARROW = 1e5  # a Beta distribution of that size is as good as a point
# By how much rank correlations of what is not quite normal (sums over half of 40 examples) differ
# from the formula, in units of 1 - r². It counts where rows × targets make intervals that narrow.
_NOT_NORMAL = 0.002


@dataclass(frozen=True)
class NoiseCeiling:
    """What repeated runs say about the noise of the outputs.

    Attributes
    ----------
    reliability : float64 [T]
        Expected correlation of the mean over the R runs with the mean over R fresh ones. Can be
        negative by chance; NaN where undefined.
    mean : float
        The ceiling: the expected correlation of the mean over the R runs with their noise-free
        expectation, which is the best that any prediction can do. A mean LDS is judged against it.
        0 where the reliability does not exceed its standard error.
    interval : Interval
        Of the ceiling, for the subsets being random and, for ranks, the formula being one of
        normal variables.
    num_runs, num_splits : int
    influence : float64 [M]
        Of each subset on the ceiling; 0 for one that was left out.
    """

    reliability: NDArray[np.float64]
    mean: float
    interval: Interval
    num_runs: int
    num_splits: int
    influence: NDArray[np.float64] = field(repr=False)


def noise_ceiling(
    outputs: Any,
    kind: Kind = "spearman",
    *,
    splits: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> NoiseCeiling:
    """Estimate the noise ceiling of outputs from several runs of each subset.

    The runs are split into two halves, whose means are correlated over subsets, averaged over
    splits. The correlations of normal variables that have these are carried from half the runs to
    all of them by the Spearman-Brown formula ``n r / (1 + (n - 1) r)`` with ``n = R / (R // 2)``,
    and their roots are ceilings. Roots of single targets' noisy values would average to too much
    for pure noise and to too little else, the root of the mean to too much where targets differ:
    targets are taken as Beta-distributed, with the mean that was found and with the variance that
    is left when what the subsets' randomness explains is subtracted.

    Parameters
    ----------
    outputs : real [M, R, T]
        Outputs of R >= 2 runs, which differ in their randomness only, of M subsets. Subsets with a
        run that holds nothing but NaN are left out.
    kind : "spearman", "pearson" or "kendall"
        As in the LDS that is judged.
    splits : int
        How many random splits to average; all of them where there are no more than that.
    level : float
        Of the interval.
    seed : int
        Of the splits, where they are drawn.

    Returns
    -------
    NoiseCeiling

    Raises
    ------
    ScoringError
        If there are fewer than two runs, or subsets of which all runs hold a number.
    """
    runs = as_array(outputs, "outputs")
    if runs.ndim != 3 or runs.shape[1] < 2:
        raise ScoringError(
            f"a noise ceiling needs outputs [M, R, T] of at least two runs, not {list(runs.shape)}"
        )
    if splits < 1:
        raise ScoringError(f"the number of splits must be positive, not {splits}")
    failed = np.isnan(runs).all(axis=2).any(axis=1)
    if len(failed) - failed.sum() < 2:
        raise ScoringError(
            f"a noise ceiling needs two subsets or more whose runs all hold numbers; of "
            f"{len(failed)}, {failed.sum()} have a run of nothing but NaN: leave that run out"
        )
    runs = runs[~failed] if failed.any() else runs
    count, num_runs, targets = runs.shape
    halves = _splits(num_runs, splits, seed)
    parts, influence, errors = [], np.zeros(count), 0.0
    for piece in blocks(targets, BLOCK_BYTES // (32 * max(count, 1))):
        block = np.asarray(runs[:, :, piece], dtype=np.float64)
        part, found = _half_correlations(block, halves, kind)
        parts.append(part)
        influence += found.sum(axis=0)
        errors += float((standard_error(found) ** 2).sum())
    half = join(parts)
    half.warn()
    defined = half.r[~np.isnan(half.r)]
    influence /= max(defined.size, 1)
    mean = float(defined.mean()) if defined.size else np.nan
    error = float(standard_error(influence))
    between = _between(defined, errors / max(defined.size, 1), error**2)
    carried = _Carried(kind, count, num_runs / (num_runs // 2), between)
    limits = correlation_limits(mean, influence, level)
    ceiling, low, high = carried.ceiling(np.array([mean, *limits]))
    normal = 0.0 if kind == "pearson" else special.ndtri((1 + level) / 2)
    allowed = normal * _NOT_NORMAL * (1 - ceiling**2)
    low = ceiling - np.hypot(ceiling - low, allowed)
    high = ceiling + np.hypot(high - ceiling, allowed)
    certain = not mean <= error  # also where no interval is known
    of_all = np.zeros(len(failed))
    of_all[~failed] = carried.slope(mean) * influence * len(failed) / max(count, 1)
    return NoiseCeiling(
        reliability=carried.reliability(half.r),
        mean=float(ceiling) if certain else 0.0,
        interval=Interval(max(float(low), 0.0), min(float(high), 1.0), level, count),
        num_runs=num_runs,
        num_splits=len(halves),
        influence=of_all,
    )


def _half_correlations(
    runs: NDArray[np.float64], halves: list[tuple[list[int], list[int]]], kind: Kind
) -> tuple[Correlation, NDArray[np.float64]]:
    """Mean over splits of the correlation of two halves of [M, R, t], and its influences [t', M].

    The influences are of the t' targets that have a correlation, and NaN from too few rows.
    """

    def pairs() -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        for first, second in halves:
            yield runs[:, first].mean(axis=1), runs[:, second].mean(axis=1)

    parts = [correlate(a, b, kind) for a, b in pairs()]
    r = np.mean([part.r for part in parts], axis=0)
    known = ~np.isnan(r)
    found = np.full((int(known.sum()), len(runs)), 0.0 if len(runs) >= FEWEST_ROWS else np.nan)
    if len(runs) >= FEWEST_ROWS:
        for a, b in pairs():
            found += influences(rows_of(a[:, known], kind), rows_of(b[:, known], kind), kind)
    return replace(parts[0], r=r), found / len(halves)


def _between(half: NDArray[np.float64], error: float, of_mean: float) -> float:
    """Variance of targets' true half correlations [t]; 0 where it is not beyond chance.

    ``error`` is the mean sampling variance of a target, ``of_mean`` that of the mean over targets,
    which says how much the targets' errors have in common.
    """
    if half.size < 2:
        return 0.0
    more = half.size / (half.size - 1)
    left = float(half.var(ddof=1)) - more * (error - of_mean)
    return left if left > 2 * error * np.sqrt(2 / (half.size - 1)) else 0.0


@dataclass(frozen=True)
class _Carried:
    """From correlations of half the runs to what they say of all runs.

    Attributes
    ----------
    kind : "spearman", "pearson" or "kendall"
    count : int
        M.
    times : float
        Runs over those of a half.
    between : float
        Variance of targets' true half correlations.
    """

    kind: Kind
    count: int
    times: float
    between: float

    def reliability(self, half: NDArray[np.float64]) -> NDArray[np.float64]:
        """Carry over each by itself."""
        rho = normal_correlation(half, self.kind, self.count)
        return expected_correlation(self._all_runs(rho), self.kind, self.count)

    def ceiling(self, half: Any) -> NDArray[np.float64]:
        """Mean ceiling of targets with mean half correlations [...]."""
        rho = np.clip(normal_correlation(half, self.kind, self.count), 0, 1)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            size = rho * (1 - rho) / np.float64(self.between) - 1  # of a Beta with this variance
            spread = special.betaincinv(rho * size, (1 - rho) * size, _QUANTILES)
            shaped = (size > 0) & (size < _NARROW)
        rho = np.where(shaped, spread, rho)
        return expected_correlation(np.sqrt(self._all_runs(rho)), self.kind, self.count).mean(-1)

    def slope(self, half: float, step: float = 1e-4) -> float:
        """Derivative of the mean ceiling."""
        return float(self.ceiling(half + step) - self.ceiling(half - step)) / (2 * step)

    def _all_runs(self, half: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.times * half / (1 + (self.times - 1) * half)


def _splits(count: int, most: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of disjoint halves of ``range(count)``; an odd run is left out in turn."""
    half = count // 2
    possible = comb(count, half) * comb(count - half, half) // 2
    if possible <= most:
        return [
            (list(first), list(second))
            for first in itertools.combinations(range(count), half)
            for second in itertools.combinations(sorted(set(range(count)) - set(first)), half)
            if first < second
        ]
    generator = np.random.Generator(np.random.Philox(seed))
    orders = (generator.permutation(count).tolist() for _ in range(most))
    return [(order[:half], order[half : 2 * half]) for order in orders]

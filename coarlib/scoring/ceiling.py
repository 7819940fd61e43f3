"""The LDS that a perfect method would reach, given how noisy the measured outputs are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, blocks
from coarlib.statistics.correlation import Correlation, Kind, correlate, join
from coarlib.statistics.intervals import (
    Interval,
    MeanInfluence,
    correlation_limits,
    rows_of,
    standard_error,
)

__all__ = ["NoiseCeiling", "noise_ceiling"]


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
        Of the ceiling, for the subsets being random.
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

    The runs are split into two halves, whose means are correlated over subsets. The correlation is
    averaged over splits *and targets*, carried from half the runs to all of them by the
    Spearman-Brown formula ``n r / (1 + (n - 1) r)`` with ``n = R / (R // 2)``, and only then is the
    root taken: roots of single targets' noisy values would average to too much for pure noise and
    to too little else. The formula is exact for Pearson's correlation and a good approximation for
    rank correlations; targets of very different noise have a mean ceiling slightly below this one.

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
        If there are fewer than two runs.
    """
    runs = as_array(outputs, "outputs")
    if runs.ndim != 3 or runs.shape[1] < 2:
        raise ScoringError(
            f"a noise ceiling needs outputs [M, R, T] of at least two runs, not {list(runs.shape)}"
        )
    if splits < 1:
        raise ScoringError(f"the number of splits must be positive, not {splits}")
    failed = np.isnan(runs).all(axis=2).any(axis=1)
    runs = runs[~failed] if failed.any() else runs
    count, num_runs, targets = runs.shape
    halves = _splits(num_runs, splits, seed)
    pooled = MeanInfluence(count, kind)
    parts = []
    for piece in blocks(targets, BLOCK_BYTES // (32 * max(count, 1))):
        block = np.asarray(runs[:, :, piece], dtype=np.float64)
        parts.append(_half_correlations(block, halves, kind, pooled))
    half = join(parts)
    half.warn()
    times = num_runs / (num_runs // 2)
    ends = correlation_limits(pooled.estimate, pooled.influence, level)
    low, high = _root(_spearman_brown(np.array(ends), times))
    best = _unbiased(pooled.estimate, count)
    certain = not best <= standard_error(pooled.influence)  # also where no interval is known
    mean = float(_root(_spearman_brown(best, times))) if certain else 0.0
    influence = np.zeros(len(failed))
    slope = times / (1 + (times - 1) * best) ** 2 / (2 * mean) if mean > 0 else np.nan
    influence[~failed] = slope * pooled.influence * len(failed) / max(count, 1)
    return NoiseCeiling(
        reliability=_spearman_brown(half.r, times),
        mean=mean,
        interval=Interval(float(low), float(high), level, count),
        num_runs=num_runs,
        num_splits=len(halves),
        influence=influence,
    )


def _half_correlations(
    runs: NDArray[np.float64],
    halves: list[tuple[list[int], list[int]]],
    kind: Kind,
    pooled: MeanInfluence,
) -> Correlation:
    """Mean over splits of the correlation of two halves of [M, R, t]; counts each into both."""
    parts = []
    for first, second in halves:
        a, b = runs[:, first].mean(axis=1), runs[:, second].mean(axis=1)
        found = correlate(a, b, kind)
        pooled.add(rows_of(a, kind), rows_of(b, kind), found.r)
        parts.append(found)
    return replace(parts[0], r=np.mean([part.r for part in parts], axis=0))


def _spearman_brown(half: Any, times: float) -> Any:
    return times * half / (1 + (times - 1) * half)


def _unbiased(r: float, count: int) -> float:
    """Add back what a correlation over few rows loses, to first order (Olkin & Pratt 1958)."""
    return r * (1 + (1 - r**2) / (2 * count))


def _root(reliability: Any) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.maximum(reliability, 0)))


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

"""The LDS that a perfect method would reach, given how noisy the measured outputs are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array
from coarlib.statistics.correlation import Kind, correlate

__all__ = ["NoiseCeiling", "noise_ceiling"]


@dataclass(frozen=True)
class NoiseCeiling:
    """What repeated runs say about the noise of the outputs.

    Attributes
    ----------
    reliability : float64 [T]
        Expected correlation of the mean over the R runs with the mean over R fresh ones. Can be
        negative by chance; NaN where undefined.
    ceiling : float64 [T]
        ``sqrt(max(reliability, 0))``: the expected correlation of the mean over the R runs with
        their noise-free expectation, which is the best that any prediction can do.
    mean : float
        Mean ceiling over the defined targets; a mean LDS is judged against it. Where reliability
        is near zero the square root makes it optimistic.
    num_runs, num_splits : int
    """

    reliability: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    mean: float
    num_runs: int
    num_splits: int


def noise_ceiling(
    outputs: Any, kind: Kind = "spearman", *, splits: int = 100, seed: int = 0
) -> NoiseCeiling:
    """Estimate the noise ceiling of outputs from several runs of each subset.

    The runs are split into two halves, whose means are correlated over subsets; the correlation is
    averaged over splits and carried from half the runs to all of them by the Spearman-Brown
    formula ``n r / (1 + (n - 1) r)`` with ``n = R / (R // 2)``. The formula is exact for Pearson's
    correlation and a good approximation for rank correlations.

    Parameters
    ----------
    outputs : real [M, R, T]
        Outputs of R >= 2 runs, which differ in their randomness only, of M subsets.
    kind : "spearman", "pearson" or "kendall"
        As in the LDS that is judged.
    splits : int
        How many random splits to average; all of them where there are no more than that.
    seed : int

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
    halves = _splits(runs.shape[1], splits, seed)
    total = np.zeros(runs.shape[2])
    for number, (first, second) in enumerate(halves):
        result = correlate(
            runs[:, first].mean(axis=1, dtype=np.float64),
            runs[:, second].mean(axis=1, dtype=np.float64),
            kind,
        )
        if number == 0:
            result.warn()
        total += result.r
    half = total / len(halves)
    times = runs.shape[1] / (runs.shape[1] // 2)
    reliability = times * half / (1 + (times - 1) * half)
    ceiling = np.sqrt(np.maximum(reliability, 0))
    defined = ceiling[~np.isnan(ceiling)]
    mean = float(defined.mean()) if defined.size else np.nan
    return NoiseCeiling(reliability, ceiling, mean, runs.shape[1], len(halves))


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

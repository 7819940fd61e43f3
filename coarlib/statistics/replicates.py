"""Correlations of weighted rows: what a bootstrap computes in each resample.

The functions of ``REPLICATES`` add the correlations of T further targets, under each of the B row
weightings, to ``sums [B]``, and the number of targets that have one to ``numbers [B]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.statistics.arrays import BLOCK_BYTES, blocks, in_threads
from coarlib.statistics.correlation import Kind
from coarlib.statistics.kendall import kendall_of_ranks

__all__ = ["REPLICATES", "pearson_replicates"]

_RESAMPLES_A_THREAD = 16


def _spearman_replicates(
    ranks_a: NDArray[np.int32],
    ranks_b: NDArray[np.int32],
    weights: NDArray[np.uint8],
    sums: NDArray[np.float64],
    numbers: NDArray[np.int64],
) -> None:
    groups_a, groups_b = _tie_groups(ranks_a), _tie_groups(ranks_b)

    def work(piece: slice) -> None:
        _weighted_spearman(groups_a, groups_b, weights[piece], sums[piece], numbers[piece])

    in_threads(work, len(weights), _RESAMPLES_A_THREAD)


def pearson_replicates(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Pearson's correlations of T targets under each of B row weightings.

    Parameters
    ----------
    a, b : float64 [T, M]
    weights : uint8 [B, M]
        Whole numbers, not all 0 in a row.

    Returns
    -------
    float64 [B, T]
        NaN where the weighted rows are constant.
    """
    with np.errstate(all="ignore"):
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        a /= np.abs(a).max(axis=1, keepdims=True)
        b /= np.abs(b).max(axis=1, keepdims=True)
        moments = [np.ascontiguousarray(x.T) for x in (a, b, a * a, b * b, a * b)]
        found = np.empty((len(weights), len(a)))
        for piece in blocks(len(weights), BLOCK_BYTES // (48 * max(a.shape))):
            total = weights[piece].sum(axis=1, keepdims=True, dtype=np.float64)
            share = weights[piece] / total
            mean_a, mean_b, aa, bb, ab = (share @ moment for moment in moments)
            variances = (aa - mean_a**2, bb - mean_b**2)
            defined = (variances[0] > 1e-14 * aa) & (variances[1] > 1e-14 * bb)
            r = (ab - mean_a * mean_b) / np.sqrt(variances[0] * variances[1])
            found[piece] = np.where(defined, np.clip(r, -1, 1), np.nan)
    return found


def _pearson_sums(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    weights: NDArray[np.uint8],
    sums: NDArray[np.float64],
    numbers: NDArray[np.int64],
) -> None:
    for piece in blocks(len(weights), BLOCK_BYTES // (8 * len(a))):
        found = pearson_replicates(a, b, weights[piece])
        sums[piece] += np.nansum(found, axis=1)
        numbers[piece] += (~np.isnan(found)).sum(axis=1)


def _kendall_replicates(
    ranks_a: NDArray[np.int32],
    ranks_b: NDArray[np.int32],
    weights: NDArray[np.uint8],
    sums: NDArray[np.float64],
    numbers: NDArray[np.int64],
) -> None:
    rows = np.arange(ranks_a.shape[1])
    for index, weight in enumerate(weights):
        drawn = np.repeat(rows, weight)
        tau, _ = kendall_of_ranks(ranks_a[:, drawn], ranks_b[:, drawn])
        defined = ~np.isnan(tau)
        sums[index] += tau[defined].sum()
        numbers[index] += defined.sum()


_Replicate = Callable[
    [
        NDArray[Any],
        NDArray[Any],
        NDArray[np.uint8],
        NDArray[np.float64],
        NDArray[np.int64],
    ],
    None,
]
REPLICATES: dict[Kind, _Replicate] = {
    "spearman": _spearman_replicates,
    "pearson": _pearson_sums,
    "kendall": _kendall_replicates,
}


def _tie_groups(ranks: NDArray[np.int32]) -> NDArray[np.int32]:
    """Number the distinct values of each row of doubled ranks from 0 in order."""
    groups = np.empty_like(ranks)

    def work(piece: slice) -> None:
        _number_groups(ranks[piece], groups[piece])

    in_threads(work, len(ranks), 64)
    return groups


@njit(nogil=True)
def _number_groups(
    ranks: NDArray[np.int32], groups: NDArray[np.int32]
) -> None:  # pragma: no cover - compiled
    count = ranks.shape[1]
    number = np.empty(2 * count + 1, dtype=np.int32)
    for target in range(ranks.shape[0]):
        number[:] = 0
        for row in range(count):
            number[ranks[target, row] + count] = 1
        total = np.int32(0)
        for place in range(2 * count + 1):
            present = number[place]
            number[place] = total
            total += present
        for row in range(count):
            groups[target, row] = number[ranks[target, row] + count]


@njit(nogil=True)
def _weighted_spearman(
    groups_a: NDArray[np.int32],
    groups_b: NDArray[np.int32],
    weights: NDArray[np.uint8],
    sums: NDArray[np.float64],
    numbers: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Add each target's Spearman correlation of weighted rows to its resample's sum."""
    targets, count = groups_a.shape
    rank_a = np.empty(count, dtype=np.int64)
    rank_b = np.empty(count, dtype=np.int64)
    for target in range(targets):
        in_a, in_b = groups_a[target], groups_b[target]
        for resample in range(weights.shape[0]):
            weight = weights[resample]
            rank_a[:] = 0
            rank_b[:] = 0
            for row in range(count):
                rank_a[in_a[row]] += weight[row]
                rank_b[in_b[row]] += weight[row]
            aa = _midranks(rank_a)
            bb = _midranks(rank_b)
            if aa == 0 or bb == 0:
                continue
            ab = np.int64(0)
            for row in range(count):
                ab += np.int64(weight[row]) * rank_a[in_a[row]] * rank_b[in_b[row]]
            sums[resample] += ab / (np.sqrt(np.float64(aa)) * np.sqrt(np.float64(bb)))
            numbers[resample] += 1


@njit(nogil=True)
def _midranks(sizes: NDArray[np.int64]) -> np.int64:  # pragma: no cover - compiled
    """Turn tie-group sizes into doubled centred ranks in place; return their sum of squares."""
    total = np.int64(0)
    for group in range(sizes.size):
        total += sizes[group]
    before, squares = np.int64(0), np.int64(0)
    for group in range(sizes.size):
        size = sizes[group]
        rank = 2 * before + size - total
        squares += size * rank * rank
        sizes[group] = rank
        before += size
    return squares

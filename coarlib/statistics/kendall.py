"""Kendall's tau-b from ranks, O(M log M) a target (Knight 1966), with its two-sided p-value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.compiled import njit
from coarlib.statistics.arrays import in_threads

__all__ = ["kendall_of_ranks"]

EXACT_UP_TO = 33  # as scipy.stats.kendalltau(method="auto"): exact without ties up to here


def kendall_of_ranks(
    ranks_a: NDArray[np.int32], ranks_b: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tau-b and its two-sided p-value.

    Parameters
    ----------
    ranks_a, ranks_b : int32 [T, M]
        Any integers of the right order, with equal integers for ties, each below 2**31 in size.

    Returns
    -------
    tau, p : float64 [T]
        p is exact for untied columns of at most 33 rows or with at most one pair out of order, and
        otherwise the normal approximation with the tie-corrected variance (Kendall 1970).
        Meaningless for constant columns, which the caller marks.
    """
    targets, count = ranks_a.shape
    sums = np.zeros((targets, 8))

    def work(piece: slice) -> None:
        packed = (ranks_a[piece].astype(np.int64) << 32) + (
            ranks_b[piece].astype(np.int64) + np.int64(2**31)
        )
        packed.sort(axis=1)
        _count_pairs(packed, sums[piece])

    in_threads(work, targets, max(1, 2**18 // max(count, 1)))
    discordant, ties_a, ties_b, ties_both = sums[:, :4].T
    pairs = count * (count - 1) / 2
    difference = pairs - ties_a - ties_b + ties_both - 2 * discordant
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = difference / np.sqrt(pairs - ties_a) / np.sqrt(pairs - ties_b)
    return np.clip(tau, -1, 1), _p_values(count, difference, sums)


def _p_values(
    count: int, difference: NDArray[np.float64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    discordant, ties_a, ties_b, _, cubic_a, cubic_b, linear_a, linear_b = sums.T
    n, pairs = float(count), count * (count - 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (n * (n - 1) * (2 * n + 5) - linear_a - linear_b) / 18
        variance = variance + 2 * ties_a * ties_b / (n * (n - 1))
        variance = variance + cubic_a * cubic_b / (9 * n * (n - 1) * (n - 2))
        p = special.erfc(np.abs(difference) / np.sqrt(variance) / np.sqrt(2))
    fewest = np.minimum(discordant, pairs - discordant)
    exact = (ties_a + ties_b == 0) & ((count <= EXACT_UP_TO) | (fewest <= 1))
    if exact.any():
        p[exact] = _exact_p(count, fewest[exact])
    return np.asarray(p) if count >= 2 else np.full(p.shape, np.nan)


def _exact_p(count: int, fewest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the share of permutations with at most ``fewest`` inversions, at most one."""
    if count > EXACT_UP_TO:  # at most one inversion: 1 + (count - 1) * fewest permutations
        return 2 * np.exp(np.log(np.where(fewest > 0, count, 1)) - special.gammaln(count + 1))
    share = np.ones(1)
    for size in range(2, count + 1):  # probability generating function of the inversion count
        share = np.convolve(share, np.full(size, 1 / size))
    cumulative = np.cumsum(share)
    return np.minimum(1, 2 * cumulative[fewest.astype(np.int64)])


@njit(nogil=True)
def _count_pairs(
    packed: NDArray[np.int64], sums: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    """Fill ``sums`` with discordant pairs, tied pairs (a, b, both) and the variance's tie terms.

    ``packed`` rows are sorted by a, then b; discordant pairs are the inversions of b, counted by
    a bottom-up merge sort that ends with b in order.
    """
    count = packed.shape[1]
    now = np.empty(count, dtype=np.int64)
    then = np.empty(count, dtype=np.int64)
    for target in range(packed.shape[0]):
        run_a, run_both = 1, 1
        for row in range(count):
            now[row] = packed[target, row] & 0xFFFFFFFF
            if row + 1 < count and packed[target, row] >> 32 == packed[target, row + 1] >> 32:
                run_a += 1
                if packed[target, row] == packed[target, row + 1]:
                    run_both += 1
                    continue
            else:
                t = np.float64(run_a)
                sums[target, 1] += t * (t - 1) / 2
                sums[target, 4] += t * (t - 1) * (t - 2)
                sums[target, 6] += t * (t - 1) * (2 * t + 5)
                run_a = 1
            t = np.float64(run_both)
            sums[target, 3] += t * (t - 1) / 2
            run_both = 1
        width = 1
        inversions = np.int64(0)
        while width < count:
            for start in range(0, count, 2 * width):
                middle, end = min(start + width, count), min(start + 2 * width, count)
                left, right = start, middle
                for place in range(start, end):
                    if left < middle and (right >= end or now[left] <= now[right]):
                        then[place] = now[left]
                        left += 1
                    else:
                        then[place] = now[right]
                        right += 1
                        inversions += middle - left
            now, then = then, now
            width *= 2
        sums[target, 0] = inversions
        run_b = 1
        for row in range(count):
            if row + 1 < count and now[row] == now[row + 1]:
                run_b += 1
                continue
            t = np.float64(run_b)
            sums[target, 2] += t * (t - 1) / 2
            sums[target, 5] += t * (t - 1) * (t - 2)
            sums[target, 7] += t * (t - 1) * (2 * t + 5)
            run_b = 1

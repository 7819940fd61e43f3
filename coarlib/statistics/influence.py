"""The influence of each row on a correlation: the exact jackknife, all rows at once.

Let r be a correlation over M rows and r(i) the one without row i. The influence of row i is (M - 1)
times the mean of all r(j), minus r(i) (Tukey 1958): the influences sum to zero, and r scatters over
fresh rows like their mean. Correlations over the same rows have influences in the same rows, so
those of a mean over targets, of a difference, or of any smooth function follow by its derivatives.

All r(i) of a target take O(M) for Pearson's correlation and O(M log M) for rank correlations:
a doubled centred rank is the sum of ``sign(x - x_j)`` over rows j, so that leaving a row out
changes each sum of products by sums over the rows below and above it, and by its pairs in order
(which a Fenwick tree counts).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.statistics.arrays import in_threads
from coarlib.statistics.correlation import Kind

__all__ = ["influences"]

_TARGETS_A_THREAD = 16
_ROUNDING = 1e-12


def influences(a: NDArray[Any], b: NDArray[Any], kind: Kind) -> NDArray[np.float64]:
    """Influence of each of M rows on the correlation of each of T targets.

    Parameters
    ----------
    a, b : [T, M]
        Doubled ranks (int32, see :func:`coarlib.statistics.ranks.doubled_ranks`) for a rank
        correlation, values (float64) for Pearson's; not constant.
    kind : "spearman", "pearson" or "kendall"

    Returns
    -------
    float64 [T, M]
        A correlation that hangs on one row (without it, a column is constant) counts as 0 there.
    """
    if kind == "pearson":
        left = _pearson_without_each(a, b)
    else:
        left = np.empty(a.shape)

        def work(piece: slice) -> None:
            _ranks_without_each(a[piece], b[piece], kind == "kendall", left[piece])

        in_threads(work, len(a), _TARGETS_A_THREAD)
    result: NDArray[np.float64] = (a.shape[1] - 1) * (left.mean(axis=1, keepdims=True) - left)
    return result


def jackknife_bias(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Bias of Pearson's correlation over M rows, [T], by leaving out each (Quenouille 1956)."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    r = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray((a.shape[1] - 1) * (_pearson_without_each(a, b).mean(1) - r))


def _pearson_without_each(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    a, b = (x / np.abs(x).max(axis=1, keepdims=True) for x in (a, b))
    more = a.shape[1] / (a.shape[1] - 1)

    def without(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        products = x * y
        return np.asarray(products.sum(axis=1, keepdims=True) - more * products)

    aa, bb = without(a, a), without(b, b)
    defined = (aa > _ROUNDING) & (bb > _ROUNDING)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = without(a, b) / np.sqrt(aa * bb)
    return np.where(defined, np.clip(r, -1, 1), 0.0)


@njit(nogil=True)
def _ranks_without_each(
    ranks_a: NDArray[np.int32],
    ranks_b: NDArray[np.int32],
    kendall: bool,
    left: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """Fill ``left`` [T, M] with the correlations without each row."""
    targets, count = ranks_a.shape
    for target in range(targets):
        a, b = ranks_a[target], ranks_b[target]
        below_a, upto_a, ab, aa = _sums_beside(a, b)
        below_b, upto_b, ba, bb = _sums_beside(b, a)
        in_order = _pairs_in_order(below_a, upto_a, below_b, upto_b)
        all_ab, all_aa, all_bb = np.int64(0), np.int64(0), np.int64(0)
        for row in range(count):
            if kendall:
                all_ab += in_order[row]
                all_aa += count - (upto_a[row] - below_a[row])
                all_bb += count - (upto_b[row] - below_b[row])
            else:
                all_ab += np.int64(a[row]) * b[row]
                all_aa += np.int64(a[row]) * a[row]
                all_bb += np.int64(b[row]) * b[row]
        for row in range(count):
            others_a = count - (upto_a[row] - below_a[row])
            others_b = count - (upto_b[row] - below_b[row])
            if kendall:
                xy = all_ab - 2 * in_order[row]
                xx, yy = all_aa - 2 * others_a, all_bb - 2 * others_b
            else:
                xy = all_ab - np.int64(a[row]) * b[row] - ab[row] - ba[row] + in_order[row]
                xx = all_aa - np.int64(a[row]) * a[row] - 2 * aa[row] + others_a
                yy = all_bb - np.int64(b[row]) * b[row] - 2 * bb[row] + others_b
            defined = xx > 0 and yy > 0
            left[target, row] = (
                xy / np.sqrt(np.float64(xx)) / np.sqrt(np.float64(yy)) if (defined) else 0.0
            )


@njit(nogil=True)
def _sums_beside(
    x: NDArray[np.int32], y: NDArray[np.int32]
) -> tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
]:  # pragma: no cover - compiled
    """For each row i: rows with x_j < x_i, with x_j <= x_i; sums of sign(x_j - x_i) y_j, x_j."""
    count = len(x)
    number = np.zeros(2 * count + 1, dtype=np.int64)
    of_y = np.zeros(2 * count + 1, dtype=np.int64)
    of_x = np.zeros(2 * count + 1, dtype=np.int64)
    for row in range(count):
        place = x[row] + count + 1
        number[place] += 1
        of_y[place] += y[row]
        of_x[place] += x[row]
    for place in range(2 * count):
        number[place + 1] += number[place]
        of_y[place + 1] += of_y[place]
        of_x[place + 1] += of_x[place]
    below, upto = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    signed_y, signed_x = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for row in range(count):
        place = x[row] + count
        below[row], upto[row] = number[place], number[place + 1]
        signed_y[row] = -of_y[place] - of_y[place + 1]  # the sums over all rows are zero
        signed_x[row] = -of_x[place] - of_x[place + 1]
    return below, upto, signed_y, signed_x


@njit(nogil=True)
def _pairs_in_order(
    below_a: NDArray[np.int64],
    upto_a: NDArray[np.int64],
    below_b: NDArray[np.int64],
    upto_b: NDArray[np.int64],
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """For each row: how many others are in the same order in a and b, minus the opposite."""
    count = len(below_a)
    order = np.argsort(below_a, kind="mergesort")
    tree = np.zeros(count + 1, dtype=np.int64)
    found = np.zeros(count, dtype=np.int64)
    start = 0
    while start < count:
        stop = upto_a[order[start]]
        for place in range(start, stop):  # rows before: below in a
            row = order[place]
            found[row] += _counted(tree, below_b[row]) - (start - _counted(tree, upto_b[row]))
        for place in range(start, stop):
            index = upto_b[order[place]]
            while index <= count:
                tree[index] += 1
                index += index & -index
        for place in range(start, stop):  # rows not counted yet: above in a
            row = order[place]
            above_below = below_b[row] - _counted(tree, below_b[row])
            above_above = (count - upto_b[row]) - (stop - _counted(tree, upto_b[row]))
            found[row] += above_above - above_below
        start = stop
    return found


@njit(nogil=True)
def _counted(tree: NDArray[np.int64], index: np.int64) -> np.int64:  # pragma: no cover - compiled
    """Sum of the first ``index`` entries of a Fenwick tree."""
    total = np.int64(0)
    while index > 0:
        total += tree[index]
        index -= index & -index
    return total

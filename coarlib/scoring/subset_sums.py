"""Sums of scores over subsets, rounded once.

What a linear method predicts for a subset is the sum of its examples' scores. Two subsets whose
sums are equal must tie; floating-point sums depend on the order of summation and break such ties
(three-level scores over 60 subsets: up to 0.022 of LDS a target). So each column of scores is cut
into slices of few enough bits that every sum of a slice is exact in float64, in any order and
blocking (Rump, Ogita & Oishi 2008; Ozaki et al. 2012); the exact sums are added at the end. Mostly
one slice and a few rows of a second one are needed, so the cost is that of one matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from coarlib.compiled import njit
from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array, as_masks, blocks, clean_booleans

__all__ = ["subset_sums"]

_CHUNK_BYTES = 4 * 2**20  # what a core keeps near, so that slices are not written to memory
_MOST_SLICES = 3
_MANTISSA = 53


def subset_sums(scores: Any, masks: Any) -> NDArray[np.float64]:
    """Sum the scores of each subset's examples: the predicted outputs.

    Parameters
    ----------
    scores : real [N, T]
        Score of each example (or component) for each target. Non-finite scores make every sum of
        their column NaN.
    masks : bool or 0/1 [M, N], or a list of M index arrays

    Returns
    -------
    float64 [T, M]
        The exact sums rounded to float64 once, for scores that span up to about ``2**-100`` of the
        largest in their column; smaller parts are added in plain float64.

    Raises
    ------
    ScoringError
        If shapes do not fit, or masks hold other values than 0 and 1.
    """
    scores = as_array(scores, "scores")
    if scores.ndim != 2:
        raise ScoringError(f"scores must be [N, T], not of shape {list(scores.shape)}")
    masks = as_masks(masks, scores.shape[0])
    if scores.dtype.kind != "f" or not scores.dtype.isnative or scores.dtype.itemsize < 4:
        scores = scores.astype(np.float32 if scores.dtype.itemsize == 2 else np.float64)
    scores = np.ascontiguousarray(scores)  # the compiled loops are vectorised along rows
    largest = _column_maxima(scores)
    finite = np.isfinite(largest)
    exponents = np.frexp(np.where(finite, largest, 1))[1]
    scale = np.ldexp(1.0, -np.maximum(exponents, -1000))
    sums = _sliced_sums(scores, scale, masks)
    sums /= scale[:, None]
    sums[~finite] = np.nan
    return sums


def _sliced_sums(
    scores: NDArray[Any], scale: NDArray[np.float64], masks: NDArray[Any]
) -> NDArray[np.float64]:
    """Sum ``scale * scores``, at most 1 in magnitude, over each mask.

    Slice s holds multiples of ``2**(s * (grid_bits - 53) + grid_bits - 53)``, and no sum of N of
    them needs more than 53 bits. Examples go chunk by chunk, to bound the memory that
    slices take; since sums are exact, the chunks do not show in the result.
    """
    (num_examples, targets), subsets = scores.shape, masks.shape[0]
    grid_bits = max(2, num_examples.bit_length())
    anchor = 1.5 * 2.0 ** (grid_bits - 1)  # adding and subtracting it rounds to the grid
    finer = 2.0 ** (_MANTISSA - grid_bits)
    sums = [np.zeros((targets, subsets))]
    for piece in blocks(num_examples, max(64, _CHUNK_BYTES // (8 * (targets + subsets + 1)))):
        examples = np.arange(piece.start, piece.stop)
        part, factor = scores[piece], scale
        for level in range(_MOST_SLICES):
            last = level == _MOST_SLICES - 1
            head, inexact = _cut(part, factor, 0.0 if last else anchor)
            if level == len(sums):
                sums.append(np.zeros((targets, subsets)))
            _accumulate(sums[level], head, _kept(masks, examples))
            if last or not inexact.any():
                break
            part = (part[inexact] * factor - head[inexact]) * finer
            part[~np.isfinite(part)] = 0  # their columns become NaN at the end
            examples, factor = examples[inexact], np.ones_like(scale)
    total = sums.pop()
    while sums:
        total = sums.pop() + total / finer
    return total


def _kept(masks: NDArray[Any], examples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Columns of the masks as float64, checked."""
    whole = examples[-1] - examples[0] + 1 == len(examples)
    part = masks[:, examples[0] : examples[-1] + 1] if whole else masks[:, examples]
    if masks.dtype == bool:
        part = clean_booleans(np.ascontiguousarray(part))
    elif not ((part == 0) | (part == 1)).all():
        raise ScoringError("masks hold values other than 0 and 1; True or 1 means kept")
    return np.asarray(part, dtype=np.float64, order="C")


def _accumulate(
    sums: NDArray[np.float64], values: NDArray[np.float64], kept: NDArray[np.float64]
) -> None:
    """Add ``values.T @ kept.T`` to ``sums`` [T, M] in place (BLAS sees the transposes)."""
    if sums.size:
        blas.dgemm(1.0, kept.T, values.T, 1.0, sums.T, trans_a=1, trans_b=1, overwrite_c=1)


def _cut(
    scores: NDArray[Any], scale: NDArray[np.float64], anchor: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Round scaled scores to the grid of ``anchor`` (0: not at all); which rows are inexact."""
    head, inexact = np.empty(scores.shape), np.empty(len(scores), dtype=bool)
    _cut_slice(scores, scale, anchor, head, inexact)  # one thread: BLAS's own are still spinning
    return head, inexact


@njit(nogil=True)
def _column_maxima(scores: NDArray[Any]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Largest magnitude of each column; NaN if the column holds one."""
    largest = np.zeros(scores.shape[1])
    for row in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            size = abs(np.float64(scores[row, column]))
            if size > largest[column] or np.isnan(size):
                largest[column] = size
    return largest


@njit(nogil=True)
def _cut_slice(
    scores: NDArray[Any],
    scale: NDArray[np.float64],
    anchor: float,
    head: NDArray[np.float64],
    rest: NDArray[np.bool_],
) -> None:  # pragma: no cover - compiled
    """Round scaled scores to the grid that ``anchor`` defines (0: keep all); flag inexact rows."""
    for row in range(scores.shape[0]):
        inexact = False
        for column in range(scores.shape[1]):
            value = np.float64(scores[row, column]) * scale[column]
            rounded = (value + anchor) - anchor if np.isfinite(value) else 0.0
            head[row, column] = rounded
            inexact |= rounded != value and np.isfinite(value)
        rest[row] = inexact

"""Are the rows what they should be? Completeness, masks, outputs that never vary or are NaN."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import read_blocks

__all__ = ["Health", "examine"]

MOST_ROWS = 1000


@dataclass(frozen=True)
class Health:
    """What a sample of the completed rows looks like.

    Attributes
    ----------
    num_complete, num_sampled : int
        Completed rows (K), and how many of them (S) were looked at, evenly spaced.
    kept_share : float64 [N]
        Share of sampled rows that keep each feature.
    share_positive : float64 [S]
        Share of positive outputs of each row; for margins, the model's accuracy.
    mean, deviation : float64 [T]
        Of each target's finite outputs.
    constant, has_nonfinite : bool [T]
        Targets that never vary, and those with NaN or infinity in some row.
    """

    num_complete: int
    num_sampled: int
    kept_share: NDArray[np.float64]
    share_positive: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    constant: NDArray[np.bool_]
    has_nonfinite: NDArray[np.bool_]


def examine(source: RowSource, most_rows: int = MOST_ROWS) -> Health | None:
    """Look at evenly spaced completed rows; None if there are none.

    Parameters
    ----------
    source : RowSource
    most_rows : int
        Read at most so many.
    """
    complete = len(source.row_ids)
    if complete == 0:
        return None
    count = min(complete, most_rows)
    positions = np.linspace(0, complete - 1, count).astype(np.int64)
    targets = source.num_targets
    kept = np.zeros(source.num_features)
    total, square, seen = np.zeros(targets), np.zeros(targets), np.zeros(targets, np.int64)
    low, high = np.full(targets, np.inf), np.full(targets, -np.inf)
    positive = []
    shift: NDArray[np.float64] | None = None
    for _, masks, outputs in read_blocks(source, positions, block_bytes=2**27):
        kept += masks.sum(0)
        values = outputs.astype(np.float64)
        finite = np.isfinite(values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            positive.append((values > 0).sum(1) / np.maximum(finite.sum(1), 1))
        low = np.minimum(low, np.where(finite, values, np.inf).min(0))
        high = np.maximum(high, np.where(finite, values, -np.inf).max(0))
        if shift is None:  # about some value of each target, so that squares lose no digits
            shift = np.where(finite[0], values[0], 0.0)
        centred = np.where(finite, values - shift, 0)
        seen += finite.sum(0)
        total += centred.sum(0)
        square += (centred**2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / seen
        deviation = np.sqrt(np.maximum(square / seen - mean**2, 0))
    offset = np.zeros(targets) if shift is None else shift
    return Health(
        num_complete=complete,
        num_sampled=count,
        kept_share=kept / count,
        share_positive=np.concatenate(positive),
        mean=mean + offset,
        deviation=np.where(low == high, 0.0, deviation),
        constant=low == high,
        has_nonfinite=seen < count,
    )

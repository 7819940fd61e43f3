"""How held-out correlation grows with rows, and predictions on held-out rows to look at.

Moments are sums over rows, so the fits on the first n rows, for growing n, cost one pass: each
adds a range of rows to the moments of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ReportError
from coarlib.regression.attributions import Attributions
from coarlib.regression.blocks import read_blocks
from coarlib.regression.experiment import Split
from coarlib.regression.fit import fit
from coarlib.regression.heldout import HeldOut, score_arrays
from coarlib.regression.moments import Moments
from coarlib.regression.rows import RowSource

__all__ = ["LearningCurve", "SomeTargets", "doubling", "learning_curve", "split_of"]

MOST_TARGETS = 128
MOST_FEATURES = 2500  # beyond, six eigendecompositions take minutes
FEWEST_ROWS = 24
HALVINGS = 5
MOST_HELD_OUT = 1000
MOST_VALUES = 4 * 10**9


@dataclass(frozen=True)
class SomeTargets:
    """A row source that shows chosen targets of another.

    Parameters
    ----------
    source : RowSource
    chosen : int64 [t]
    """

    source: RowSource
    chosen: NDArray[np.int64]

    @property
    def description(self) -> str:
        """Where the rows come from."""
        return self.source.description

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The number of each completed row."""
        return self.source.row_ids

    @property
    def num_features(self) -> int:
        """Width of a mask, N."""
        return self.source.num_features

    @property
    def num_targets(self) -> int:
        """How many targets are shown, t."""
        return len(self.chosen)

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Dtype of the outputs as stored."""
        return self.source.output_dtype

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of the rows and of what is shown of them."""
        return f"{self.source.identity(row_ids)}-{self.chosen.tolist()}"

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position."""
        masks, outputs = self.source.read(positions)
        return masks, outputs[:, self.chosen]


@dataclass(frozen=True)
class LearningCurve:
    """Held-out scores of ridge fits on growing numbers of rows.

    Attributes
    ----------
    num_rows : int64 [P]
    scores : sequence of P HeldOut
        All on the same held-out rows.
    doubled : float or None
        Expected mean correlation with twice the last number of rows.
    targets : int64 [t]
        Which targets were looked at.
    masks : bool [K, N]
        Of the held-out rows.
    predicted, true : float32 [K, t]
        Held-out outputs, predicted by the largest fit and measured.
    """

    num_rows: NDArray[np.int64]
    scores: list[HeldOut]
    doubled: float | None
    targets: NDArray[np.int64]
    masks: NDArray[np.bool_]
    predicted: NDArray[np.float32]
    true: NDArray[np.float32]


def split_of(attributions: Attributions | None, source: RowSource) -> Split | None:
    """Return which rows a fit used and which it held out, from its summary.

    Without attributions, the last tenth of the rows is held out. None if nothing is held out.
    Rows that a fit has left out as not finite make the split uncertain at its border: those
    positions are in neither part.
    """
    rows = len(source.row_ids)
    if attributions is None:
        held = rows // 10
        if rows - held < FEWEST_ROWS or held < 2:
            return None
        order = np.arange(rows, dtype=np.int64)
        return Split(order[: rows - held], order[rows - held :])
    summary = attributions.summary
    train = int(summary.get("rows_for_validation_fit") or 0)
    validation_rows = int(summary.get("rows_held_out") or 0)
    total = int(summary.get("num_rows", 0)) + int(summary.get("num_excluded", 0))
    if not 0 < total <= rows:
        return None
    order = np.arange(total, dtype=np.int64)
    if summary.get("seed") is not None:
        order = np.random.Generator(np.random.Philox(int(summary["seed"]))).permutation(order)
    validation = np.arange(total, rows, dtype=np.int64)
    if validation_rows:
        validation = order[total - validation_rows :]
    if len(validation) < 2 or train < FEWEST_ROWS:
        return None
    return Split(np.sort(order[:train]), np.sort(validation))


def doubling(num_rows: NDArray[Any], mean: NDArray[Any]) -> float | None:
    """Predict the mean correlation with twice the rows.

    With estimation noise of variance a/n on top of an effect, r² = c² / (1 + a/n), so 1/r² is
    linear in 1/n; the line goes through the last three points by least squares.

    Returns
    -------
    float or None
        None with fewer than three points or a correlation that does not grow.
    """
    n, r = np.asarray(num_rows, float)[-3:], np.asarray(mean, float)[-3:]
    if len(n) < 3 or not (np.isfinite(r).all() and (r > 0).all()):
        return None
    slope, intercept = np.polyfit(1 / n, 1 / r**2, 1)
    if slope <= 0 or intercept + slope / (2 * n[-1]) <= 0:
        return None
    found = float((intercept + slope / (2 * n[-1])) ** -0.5)
    return min(found, 1.0) if found >= r[-1] else None


def learning_curve(source: RowSource, split: Split, targets: NDArray[np.int64]) -> LearningCurve:
    """Fit ridge (λ by generalised cross-validation) on growing parts of the training rows.

    Parameters
    ----------
    source : RowSource
    split : Split
    targets : int64 [t]
        Which targets to look at.

    Raises
    ------
    ReportError
        If it would take too long; the message says why.
    """
    train, validation = split.train, split.validation[:MOST_HELD_OUT]
    values = len(train) * (source.num_features + source.num_targets)
    if source.num_features > MOST_FEATURES or values > MOST_VALUES:
        raise ReportError(
            f"fits on growing numbers of rows are left out: {source.num_features:,} features, "
            f"{source.num_targets:,} targets and {len(train):,} rows would take minutes (limits: "
            f"{MOST_FEATURES:,} features, {MOST_VALUES:,} values)"
        )
    some = SomeTargets(source, targets)
    blocks = list(read_blocks(some, validation))
    masks = np.concatenate([block for _, block, _ in blocks])
    true = np.concatenate([outputs for _, _, outputs in blocks]).astype(np.float32)
    sizes = np.unique([len(train) >> halving for halving in range(HALVINGS)])
    sizes = sizes[sizes >= min(FEWEST_ROWS, len(train))]
    total: Moments | None = None
    scores, predicted, start = [], np.zeros_like(true), 0
    for stop in sizes:
        part = Moments.from_rows(some, train[start:stop])
        total = part if total is None else total + part
        predicted = fit(total, "ridge").predict(masks)
        scores.append(score_arrays(predicted, true))
        start = stop
    doubled = doubling(sizes, np.array([score.mean for score in scores]))
    return LearningCurve(sizes, scores, doubled, targets, masks, predicted, true)

"""What is scored on what: scores, masks and outputs that fit together, and which rows to use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.masks.digests import mask_digests
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, as_masks, blocks

__all__ = [
    "RowsLeftOutWarning",
    "ScoredRows",
    "mean_over_runs",
    "outputs_matrix",
    "score_matrix",
    "scored_rows",
]

_NAMED = 5


class RowsLeftOutWarning(UserWarning):
    """Some rows are not scored on; the message says which and why."""


@dataclass(frozen=True)
class ScoredRows:
    """Checked inputs of an LDS.

    Attributes
    ----------
    scores : real [N, T]
    masks : bool or 0/1 [M, N]
    outputs : real [M, T] or [M, R, T]
    rows : int64 [K]
        The rows that are scored on, ascending.
    failed, fitted : int64
        Rows that are left out: all their outputs are NaN; the scores were fitted on them.
    includes_fitted : bool
        Whether the scores were fitted on some of ``rows``.
    """

    scores: NDArray[Any]
    masks: NDArray[Any]
    outputs: NDArray[Any]
    rows: NDArray[np.int64]
    failed: NDArray[np.int64]
    fitted: NDArray[np.int64]
    includes_fitted: bool

    def used_masks(self) -> NDArray[Any]:
        """Masks of the rows that are scored on, [K, N]; not copied if that is all."""
        return self.masks if len(self.rows) == len(self.masks) else self.masks[self.rows]

    def used_outputs(self, targets: slice = slice(None)) -> NDArray[Any]:
        """Outputs of some targets on these rows, [K, t] or [K, R, t]."""
        part = self.outputs[..., targets]
        return part if len(self.rows) == len(self.masks) else part[self.rows]

    def warn(self, stacklevel: int = 2) -> None:
        """Warn with a :class:`RowsLeftOutWarning` if rows are left out."""
        reasons = [
            f"{len(rows)} of {len(self.masks)} rows {why} (row {named(rows)})"
            for rows, why in ((self.failed, "have only NaN outputs"), (self.fitted, "were fitted"))
            if len(rows)
        ]
        if reasons:
            warnings.warn(
                f"left out: {' and '.join(reasons)}; scored on the other {len(self.rows)}",
                RowsLeftOutWarning,
                stacklevel=stacklevel + 1,
            )


def named(numbers: NDArray[Any]) -> str:
    """Name the first few numbers."""
    more = ", …" if len(numbers) > _NAMED else ""
    return ", ".join(map(str, numbers[:_NAMED].tolist())) + more


def scored_rows(
    scores: Any,
    masks: Any,
    margins: Any,
    *,
    transposed: bool = False,
    fitted: Any = None,
    allow_fitted_rows: bool = False,
) -> ScoredRows:
    """Check that scores, masks and outputs fit together, and find the rows to score on.

    Parameters are those of :func:`coarlib.scoring.lds`.

    Raises
    ------
    ScoringError
        If they do not fit, or no two rows are left.
    """
    if fitted is None:
        fitted = getattr(scores, "fitted", None)
    matrix = score_matrix(getattr(scores, "weight", scores), masks, margins, transposed)
    masks = as_masks(masks, matrix.shape[0])
    outputs = outputs_matrix(margins, masks.shape[0], matrix.shape[1])
    failed = _failed(outputs)
    seen = np.zeros(len(masks), dtype=bool)
    if fitted is not None:
        seen = np.isin(mask_digests(masks), np.asarray(fitted, dtype=np.uint64))
    if len(masks) < 2:
        raise ScoringError(f"a correlation over subsets needs at least two rows, not {len(masks)}")
    used = ~failed if allow_fitted_rows else ~(failed | seen)
    if used.sum() < 2:
        raise ScoringError(_why_none(failed, seen, int(used.sum())))
    return ScoredRows(
        scores=matrix,
        masks=masks,
        outputs=outputs,
        rows=np.flatnonzero(used),
        failed=np.flatnonzero(failed),
        fitted=np.flatnonzero(seen & ~used & ~failed),
        includes_fitted=bool((seen & used).any()),
    )


def _why_none(failed: NDArray[np.bool_], seen: NDArray[np.bool_], left: int) -> str:
    if seen.any():
        return (
            f"the scores were fitted on {int(seen.sum())} of these {seen.size} rows, which leaves "
            f"{left}; a score needs two that no fit has seen: give others, or allow fitted rows"
        )
    return f"{int(failed.sum())} of {failed.size} rows have only NaN outputs, which leaves {left}"


def score_matrix(scores: Any, masks: Any, margins: Any, transposed: bool) -> NDArray[Any]:
    """Return scores as [N, T], turned if they are said to be [T, N].

    Raises
    ------
    ScoringError
        If they are no matrix or empty, or look as if they were [T, N] and nobody said so.
    """
    matrix = as_array(scores, "scores")
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise ScoringError(f"scores must be [N, T], not of shape {list(matrix.shape)}")
    if not matrix.size:
        raise ScoringError(f"there is nothing in scores of shape {list(matrix.shape)}")
    if transposed:
        return matrix.T
    widths = np.shape(masks)[1:] if hasattr(masks, "shape") else ()
    targets = np.shape(margins)[-1:] if hasattr(margins, "shape") else ()
    if matrix.shape[0] != matrix.shape[1] and matrix.shape[::-1] == (*widths, *targets):
        raise ScoringError(
            f"scores have shape {list(matrix.shape)}, which is [targets, examples] of these masks "
            "and outputs; [examples, targets] is needed: transpose them, or say transposed"
        )
    return matrix


def outputs_matrix(margins: Any, num_subsets: int, num_targets: int) -> NDArray[Any]:
    """Check outputs [M, T] or [M, R, T] (or [M] of one target) against the numbers of both.

    Raises
    ------
    ScoringError
        If they do not fit.
    """
    outputs = as_array(margins, "margins")
    if outputs.ndim == 1 and num_targets == 1:
        outputs = outputs[:, None]
    if outputs.ndim not in (2, 3):
        raise ScoringError(
            f"margins must be [M, T] or [M, runs, T], not of shape {list(outputs.shape)}"
        )
    if outputs.shape[0] != num_subsets:
        raise ScoringError(
            f"there are {num_subsets} masks but margins of {outputs.shape[0]} subsets"
        )
    if outputs.shape[-1] != num_targets:
        raise ScoringError(
            f"scores are for {num_targets} targets but margins for {outputs.shape[-1]}"
        )
    return outputs


def mean_over_runs(outputs: NDArray[Any]) -> NDArray[Any]:
    """Average [M, R, T] over the runs that are not NaN, in float64; [M, T] is returned as it is."""
    if outputs.ndim == 2:
        return outputs
    mean = np.asarray(outputs.mean(axis=1, dtype=np.float64))
    if np.isnan(mean).any():
        known = ~np.isnan(outputs)
        total = np.where(known, outputs, 0).sum(axis=1, dtype=np.float64)
        number = known.sum(axis=1)
        mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return mean


def _failed(outputs: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows all of whose outputs are NaN, bool [M]."""
    failed = np.zeros(len(outputs), dtype=bool)
    if outputs.dtype.kind != "f":
        return failed
    size = max(1, BLOCK_BYTES // max(1, outputs[:1].nbytes))
    for piece in blocks(len(outputs), size):
        block = outputs[piece].reshape(len(outputs[piece]), -1)
        suspects = np.flatnonzero(np.isnan(block[:, :1]).all(axis=1))
        failed[piece.start + suspects] = np.isnan(block[suspects]).all(axis=1)
    return failed

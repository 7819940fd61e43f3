"""What happens when the highest-scored examples (or components) of each target are removed.

The user's ``evaluate(masks, targets)`` retrains (or ablates) and measures: it gets masks [B, N],
True = kept, and the target [B] that each is for, so that many counterfactuals can be done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array, blocks

__all__ = ["Evaluate", "Order", "RemovalCurve", "brittleness", "removal_curve", "removal_masks"]

Evaluate = Callable[[NDArray[np.bool_], NDArray[np.int64]], Any]
Order = Literal["highest", "lowest", "random"]


@dataclass(frozen=True)
class RemovalCurve:
    """Outputs after removing the k first of each target's order.

    Attributes
    ----------
    ks : int64 [K]
    outputs : float64 [K, T]
    """

    ks: NDArray[np.int64]
    outputs: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean output over targets at each k, float64 [K]; NaN if a target is NaN."""
        return np.asarray(self.outputs.mean(axis=1))

    @property
    def area(self) -> NDArray[np.float64]:
        """Trapezoid mean of each target's curve over k, float64 [T]."""
        if len(self.ks) == 1:
            return self.outputs[0]
        steps, pairs = np.diff(self.ks), self.outputs[1:] + self.outputs[:-1]
        return np.asarray(0.5 * (steps @ pairs) / steps.sum())


def removal_masks(
    scores: Any, ks: Any, targets: Any, order: Order = "highest", *, seed: int = 0
) -> NDArray[np.bool_]:
    """Masks that remove the first ``ks[b]`` entries of target ``targets[b]``'s order.

    Parameters
    ----------
    scores : real [N, T]
    ks, targets : int [B]
    order : "highest", "lowest" or "random"
        Remove the highest scores first, the lowest, or in a random order that depends on (seed,
        target) only. Equal scores are taken in the order of their index.

    Returns
    -------
    bool [B, N]
        True = kept.

    Raises
    ------
    ScoringError
        If the scores hold NaN, a k is outside ``[0, N]``, or the order is unknown.
    """
    scores, counts = _scores(scores), as_array(ks, "ks")
    distinct, place = np.unique(as_array(targets, "targets"), return_inverse=True)
    orders = _removal_orders(scores, counts, order, seed, distinct)
    return _masks(orders, scores.shape[0], counts, place)


def removal_curve(
    scores: Any,
    evaluate: Evaluate,
    ks: Sequence[int],
    order: Order = "highest",
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> RemovalCurve:
    """Measure each target's output as its highest-scored examples are removed.

    Parameters
    ----------
    scores : real [N, T]
    evaluate : callable
        ``evaluate(masks bool [B, N], targets int64 [B]) -> real [B]``: entry b is the output of
        ``targets[b]`` under ``masks[b]``.
    ks : sequence of int, ascending
        Sizes to remove.
    order, seed
        As :func:`removal_masks`.
    batch_size : int
        Most masks a call.

    Returns
    -------
    RemovalCurve

    Raises
    ------
    ScoringError
        As :func:`removal_masks`, and if ``evaluate`` returns another shape.
    """
    scores, counts = _scores(scores), _ascending(ks)
    num_examples, num_targets = scores.shape
    orders = _removal_orders(scores, counts, order, seed, np.arange(num_targets))
    count, target = np.repeat(counts, num_targets), np.tile(np.arange(num_targets), len(counts))
    outputs = np.empty(count.size)
    for piece in blocks(count.size, batch_size):
        masks = _masks(orders, num_examples, count[piece], target[piece])
        outputs[piece] = _evaluated(evaluate, masks, target[piece])
    return RemovalCurve(counts, outputs.reshape(len(counts), num_targets))


def brittleness(
    scores: Any, flips: Evaluate, ks: Sequence[int], *, batch_size: int = 256
) -> NDArray[np.float64]:
    """Smallest number of highest-scored examples whose removal flips each target's prediction.

    All targets go through the sizes together, and a target leaves as soon as it flips.

    Parameters
    ----------
    scores : real [N, T]
    flips : callable
        ``flips(masks bool [B, N], targets int64 [B]) -> bool [B]``: retrain on the kept examples
        and say whether the prediction of the target has changed.
    ks : sequence of int, ascending
        Sizes to try.
    batch_size : int
        Most masks a call.

    Returns
    -------
    float64 [T]
        The smallest such k; inf where none of ``ks`` flips the prediction.

    Raises
    ------
    ScoringError
        As :func:`removal_curve`.
    """
    scores, counts = _scores(scores), _ascending(ks)
    orders = _removal_orders(scores, counts, "highest", 0, np.arange(scores.shape[1]))
    smallest = np.full(scores.shape[1], np.inf)
    for count in counts:
        left = np.flatnonzero(np.isinf(smallest))
        for piece in blocks(left.size, batch_size):
            targets = left[piece]
            masks = _masks(orders, scores.shape[0], np.full(targets.size, count), targets)
            flipped = _evaluated(flips, masks, targets)
            smallest[targets[flipped.astype(bool)]] = count
    return smallest


def _scores(scores: Any) -> NDArray[Any]:
    array = as_array(scores, "scores")
    if array.ndim != 2:
        raise ScoringError(f"scores must be [N, T], not of shape {list(array.shape)}")
    return array


def _ascending(ks: Sequence[int]) -> NDArray[np.int64]:
    counts = as_array(list(ks), "ks")
    if counts.ndim != 1 or not counts.size or counts.dtype.kind not in "iu":
        raise ScoringError(f"ks must be a list of at least one integer, not {list(ks)}")
    if (np.diff(counts) <= 0).any():
        raise ScoringError(f"ks must be ascending, not {counts.tolist()}")
    return counts.astype(np.int64)


def _removal_orders(
    scores: NDArray[Any], counts: NDArray[Any], order: str, seed: int, targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Which examples go first for each of ``targets``: int64 [len(targets), max(counts)]."""
    if order not in get_args(Order):
        raise ScoringError(f"unknown order {order!r}; there are {', '.join(get_args(Order))}")
    if counts.size and (counts.min() < 0 or counts.max() > scores.shape[0]):
        raise ScoringError(
            f"cannot remove {counts.min()} to {counts.max()} of {scores.shape[0]} examples"
        )
    most = int(counts.max(initial=0))
    orders = np.empty((targets.size, most), dtype=np.int64)
    for row, target in zip(orders, targets, strict=True):
        column = np.asarray(scores[:, target])
        if order == "random":
            generator = np.random.Generator(np.random.Philox(key=[seed, int(target)]))
            row[:] = generator.permutation(column.size)[:most]
            continue
        if np.isnan(column).any():
            raise ScoringError(f"target {int(target)} has NaN scores, which have no order")
        if order == "lowest":
            row[:] = np.argsort(column, kind="stable")[:most]
        else:  # descending, equal scores still in the order of their index
            row[:] = column.size - 1 - np.argsort(column[::-1], kind="stable")[::-1][:most]
    return orders


def _masks(
    orders: NDArray[np.int64],
    num_examples: int,
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.bool_]:
    masks = np.ones((len(counts), num_examples), dtype=bool)
    for mask, count, place in zip(masks, counts, places, strict=True):
        mask[orders[place, :count]] = False
    return masks


def _evaluated(
    evaluate: Evaluate, masks: NDArray[np.bool_], targets: NDArray[np.int64]
) -> NDArray[Any]:
    values = as_array(evaluate(masks, targets), "what evaluate returned")
    if values.shape != targets.shape:
        raise ScoringError(
            f"evaluate must return one value a mask, [{targets.size}], not {list(values.shape)}"
        )
    return values

"""Finding mislabelled examples: making them, and how well scores rank them."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.statistics.arrays import as_array
from coarlib.statistics.correlation import UndefinedCorrelationWarning

__all__ = ["Detection", "flip_label", "mislabel_detection_auc"]


class Detection(NamedTuple):
    """How well scores find what they should find.

    Attributes
    ----------
    auc : float
        Area under the ROC curve: the chance that a mislabelled example scores higher than a
        correct one, ties counting half.
    fpr, tpr : float64 [D + 1]
        False and true positive rates when all examples with at least the threshold's score are
        inspected; they start at 0.
    thresholds : float64 [D + 1]
        +inf and then the D distinct scores, descending.
    """

    auc: float
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def mislabel_detection_auc(scores: Any, mislabelled: Any) -> Detection:
    """Rank examples by self-influence and compare with which ones are mislabelled.

    O(n log n); exact, in integers, under ties.

    Parameters
    ----------
    scores : real [n]
        High = suspicious.
    mislabelled : bool or 0/1 [n]

    Returns
    -------
    Detection
        All NaN, with an :class:`UndefinedCorrelationWarning`, if a score is NaN.

    Raises
    ------
    ScoringError
        If shapes differ, or there is not at least one mislabelled and one correct example.
    """
    values, flags = as_array(scores, "scores"), as_array(mislabelled, "mislabelled")
    if values.ndim != 1 or values.shape != flags.shape:
        raise ScoringError(
            f"scores and mislabelled must both be [n], not {list(values.shape)} and "
            f"{list(flags.shape)}"
        )
    if flags.dtype != bool and not ((flags == 0) | (flags == 1)).all():
        raise ScoringError("mislabelled holds values other than 0 and 1; it flags every example")
    wrong = flags.astype(bool)
    num_wrong, num_right = int(wrong.sum()), int((~wrong).sum())
    if not num_wrong or not num_right:
        raise ScoringError(
            f"{num_wrong} of {wrong.size} examples are mislabelled; an AUC needs both kinds"
        )
    missing = int(np.isnan(values).sum())
    if missing:
        warnings.warn(
            f"no AUC (NaN): {missing} of {values.size} scores are NaN",
            UndefinedCorrelationWarning,
            stacklevel=2,
        )
        none = np.full(2, np.nan)
        return Detection(np.nan, none, none, none)
    order = np.argsort(values)[::-1]
    ordered = values[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    found = np.append(0, np.cumsum(wrong[order])[ends])  # after each group of equal scores
    alarms = np.append(0, ends + 1) - found
    area = int(np.sum(np.diff(alarms) * (found[1:] + found[:-1])))  # twice the trapezoids
    return Detection(
        auc=area / (2 * num_wrong * num_right),
        fpr=alarms / num_right,
        tpr=found / num_wrong,
        thresholds=np.append(np.inf, ordered[ends].astype(np.float64)),
    )


def flip_label(
    labels: Any, p: float = 0.1, label_space: Any = None, *, seed: int = 0
) -> tuple[Any, NDArray[np.int64]]:
    """Give a share of the labels another value.

    Parameters
    ----------
    labels : integer array or tensor [n]
        Not changed.
    p : float
        Exactly ``int(p * n)`` labels are flipped.
    label_space : sequence, optional
        The labels to choose from, uniformly among those that differ; by default, those that occur.
    seed : int

    Returns
    -------
    flipped : as ``labels``
        A copy (same type and dtype) with the flipped labels.
    indices : int64 [int(p * n)]
        Which labels were flipped, ascending.

    Raises
    ------
    ScoringError
        If p is outside [0, 1] or there is no other label to choose.
    """
    values = as_array(labels, "labels")
    if values.ndim != 1:
        raise ScoringError(f"labels must be [n], not of shape {list(values.shape)}")
    if not 0 <= p <= 1:
        raise ScoringError(f"the share of labels to flip is between 0 and 1, not {p}")
    space = np.unique(values if label_space is None else as_array(label_space, "label_space"))
    generator = np.random.Generator(np.random.Philox(seed))
    indices = np.sort(generator.choice(values.size, int(p * values.size), replace=False))
    old = values[indices]
    place = np.searchsorted(space, old)
    in_space = place < space.size
    in_space[in_space] = space[place[in_space]] == old[in_space]
    others = space.size - in_space
    if indices.size and others.min() < 1:
        raise ScoringError(f"there is only one label ({space[0]}), so none can be flipped")
    choice = generator.integers(0, others)
    choice += in_space & (choice >= place)  # skip the label itself
    if hasattr(labels, "clone"):  # a torch tensor
        flipped = labels.clone()
        flipped[indices.tolist()] = flipped.new_tensor(space[choice])
    else:
        flipped = values.copy()
        flipped[indices] = space[choice]
    return flipped, indices.astype(np.int64)

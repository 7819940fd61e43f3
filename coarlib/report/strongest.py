"""What stands out in a matrix of attributions: strongest features, nearest examples, layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.regression.attributions import Attributions

__all__ = ["Nearest", "Strongest", "layer_means", "nearest", "strongest"]

BLOCK = 2048
CANDIDATES = 5000
PROJECTED = 256


@dataclass(frozen=True)
class Strongest:
    """The features with the largest positive and negative weights of each target.

    Attributes
    ----------
    features : int64 [T, 2K]
        K positive ones, strongest first, then K negative ones, strongest first; -1 where there
        are fewer.
    weights : float32 [T, 2K]
        0 where there is no feature.
    errors : float32 [T, 2K] or None
        Standard errors.
    """

    features: NDArray[np.int64]
    weights: NDArray[np.float32]
    errors: NDArray[np.float32] | None


def strongest(attributions: Attributions, count: int) -> Strongest:
    """Find the ``count`` strongest features of either sign for every target."""
    features, targets = attributions.weight.shape
    count = min(count, features)
    chosen = np.full((targets, 2 * count), -1, np.int64)
    weights = np.zeros((targets, 2 * count), np.float32)
    for start in range(0, targets, BLOCK):
        block = np.ascontiguousarray(attributions.weight[:, start : start + BLOCK].T)
        line = np.arange(len(block))[:, None]
        for half, sign in ((slice(0, count), -1.0), (slice(count, None), 1.0)):
            keys = block * np.float32(sign)
            part = np.argpartition(keys, min(count, features - 1), axis=1)[:, :count]
            part = part[line, np.argsort(keys[line, part], axis=1, kind="stable")]
            found = block[line, part]
            wrong = ~(found * sign < 0)  # the other sign, zero or NaN
            found[wrong] = 0
            part[wrong] = -1
            chosen[start : start + BLOCK, half] = part
            weights[start : start + BLOCK, half] = found
    return Strongest(chosen, weights, _errors(attributions, chosen))


def _errors(attributions: Attributions, chosen: NDArray[np.int64]) -> NDArray[np.float32] | None:
    feature, target = attributions.error_feature, attributions.error_target
    if feature is None:
        return None
    places = np.maximum(chosen, 0)
    if feature.ndim == 1:
        errors = feature[places]
    else:
        errors = feature[places, np.arange(len(chosen))[:, None]]
    if target is not None:
        errors = errors * target[:, None]
    return np.where(chosen >= 0, errors, 0).astype(np.float32)


@dataclass(frozen=True)
class Nearest:
    """For each target those whose weights point the same way.

    Attributes
    ----------
    targets : int64 [T, K]
    cosines : float32 [T, K]
    candidates : int
        Among how many targets they were sought (fewer than T where T is large).
    """

    targets: NDArray[np.int64]
    cosines: NDArray[np.float32]
    candidates: int


def nearest(weight: NDArray[Any], count: int = 5, seed: int = 0) -> Nearest:
    """Find the nearest targets by the cosine of their weights.

    Parameters
    ----------
    weight : real [N, T]
    count : int
    seed : int
        Of the random projection that stands in for more than four times 256 features.
    """
    features, targets = weight.shape
    project = None
    if features > 4 * PROJECTED:
        generator = np.random.Generator(np.random.Philox(seed))
        project = generator.standard_normal((features, PROJECTED), dtype=np.float32)
    unit = np.empty((targets, PROJECTED if project is not None else features), np.float32)
    for start in range(0, targets, BLOCK):
        block = np.nan_to_num(np.asarray(weight[:, start : start + BLOCK].T, np.float32))
        unit[start : start + BLOCK] = block if project is None else block @ project
    norm = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norm > 0, norm, 1)
    spaced = np.linspace(0, targets - 1, min(targets, CANDIDATES)).round()
    candidates = np.unique(spaced).astype(np.int64)
    count = max(0, min(count, len(candidates) - 1))
    found = np.zeros((targets, count), np.int64)
    cosines = np.zeros((targets, count), np.float32)
    for start in range(0, targets if count else 0, BLOCK):
        rows = np.arange(start, min(start + BLOCK, targets))
        similar = unit[rows] @ unit[candidates].T
        similar[rows[:, None] == candidates[None, :]] = -np.inf
        top = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        line = np.arange(len(rows))[:, None]
        top = top[line, np.argsort(-similar[line, top], axis=1, kind="stable")]
        found[rows], cosines[rows] = candidates[top], similar[line, top]
    return Nearest(found, cosines, len(candidates))


def layer_means(
    weight: NDArray[Any], group: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean absolute weight of each group of features for each group of targets.

    Parameters
    ----------
    weight : real [N, T]
    group : int64 [N]
        Group of each feature, 0 … L-1.
    column : int64 [T]
        Group of each target, 0 … C-1.

    Returns
    -------
    float64 [L, C]
    """
    lines, columns = int(group.max()) + 1, int(column.max()) + 1
    by_column = np.zeros((weight.shape[0], columns))
    for at in range(columns):
        members = np.flatnonzero(column == at)
        for start in range(0, len(members), BLOCK):
            part = np.abs(np.asarray(weight[:, members[start : start + BLOCK]], np.float32))
            by_column[:, at] += part.sum(1, dtype=np.float64)
        by_column[:, at] /= max(len(members), 1)
    sums = np.zeros((lines, columns))
    np.add.at(sums, group, by_column)
    return sums / np.maximum(np.bincount(group, minlength=lines), 1)[:, None]

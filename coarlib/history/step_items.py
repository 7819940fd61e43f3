"""The small values of a row while they wait to be written, and how they become arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


class StepItem(NamedTuple):
    """One update; see :class:`coarlib.history.reading.StepRecord`.

    ``samples`` [B], ``weights`` float64 [B] or one for all, ``hyper`` [groups, HYPER],
    ``counts`` and ``clip`` [tensors], ``digest`` of θ before the update.
    """

    samples: list[int]
    weights: NDArray[np.float64] | float
    hyper: list[list[float]]
    counts: list[int]
    clip: list[float]
    digest: int


def listed(numbers: ArrayLike | torch.Tensor) -> list[int]:
    """Return sample numbers as a list.

    Between two passes of a network every library call is cold and takes ten times its time; plain
    Python is warm. So training keeps lists, and the writing thread makes the arrays.
    """
    values: Any = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if isinstance(values, list) and values and type(values[0]) is int:
        return values
    return [int(value) for value in np.asarray(values, np.int64).reshape(-1)]


def encode_steps(arrays: dict[str, NDArray[Any]], items: Sequence[StepItem]) -> None:
    """Fill the arrays of ``steps/``, [R, …], from R updates."""
    for key in ("hyper", "counts", "clip", "digest"):
        arrays[key][:] = [getattr(item, key) for item in items]
    arrays["samples"][:] = -1
    weighted = arrays["weights"].ndim == 2
    if weighted:
        arrays["weights"][:] = 0
    for place, item in enumerate(items):
        size = len(item.samples)
        arrays["samples"][place, :size] = item.samples
        if weighted:
            arrays["weights"][place, :size] = item.weights
        else:
            arrays["weights"][place] = item.weights


def encode_states(arrays: dict[str, NDArray[Any]], items: Sequence[int]) -> None:
    """Fill the step numbers of ``states/``, [R]; its tensors are there already."""
    arrays["step"][:] = items

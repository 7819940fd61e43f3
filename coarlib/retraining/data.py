"""What a Trainer is given as data and subsets, as tensors and index arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from coarlib.errors import TaskError

__all__ = ["as_data", "as_subset"]


def as_subset(subset: Any, num_examples: int) -> NDArray[np.int64]:
    """Return the examples of a subset, int64 [k].

    Parameters
    ----------
    subset : whole numbers [k], or bool [N]
        Indices, or a mask; True = kept.
    num_examples : int
        N.

    Raises
    ------
    TaskError
        If it is neither.
    """
    found = np.asarray(subset.cpu() if isinstance(subset, torch.Tensor) else subset)
    if found.size == 0:
        raise TaskError("a subset has no example to train on")
    if found.dtype == np.bool_:
        if found.shape != (num_examples,):
            raise TaskError(
                f"a mask of shape {list(found.shape)} is no subset of {num_examples} examples"
            )
        return np.flatnonzero(found).astype(np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TaskError(
            f"a subset must be whole numbers [k] or a boolean mask [{num_examples}], not "
            f"{found.dtype} {list(found.shape)}"
        )
    if len(found) == num_examples > 2 and found.max() <= 1:
        raise TaskError(
            "a subset holds zeros and ones only, one an example: make a mask of it with "
            "astype(bool), or name the examples by number"
        )
    if found.min() < 0 or found.max() >= num_examples:
        wrong = found.min() if found.min() < 0 else found.max()
        raise TaskError(f"a subset names example {wrong} of {num_examples}")
    return found.astype(np.int64)


def as_data(inputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets as tensors, of arrays, or of a Dataset of pairs.

    Raises
    ------
    TaskError
        If they are anything else, of different lengths, or a Dataset changes its examples.
    """
    if isinstance(inputs, Dataset) and not isinstance(inputs, torch.Tensor):
        if targets is not None:
            raise TaskError("a Dataset holds its targets; leave the argument targets out")
        inputs, targets = _of_dataset(inputs)
    inputs, targets = _as_tensor(inputs, "inputs"), _as_tensor(targets, "targets")
    if len(inputs) != len(targets):
        raise TaskError(f"{len(inputs)} inputs but {len(targets)} targets")
    return inputs, targets


def _of_dataset(dataset: Any) -> tuple[Any, Any]:
    """Fetch every example of a map-style Dataset, once."""
    try:
        pairs = [tuple(dataset[i]) for i in range(len(dataset))]
        again = dataset[0]
        inputs, targets = default_collate(pairs)
        same = torch.equal(torch.as_tensor(again[0]), torch.as_tensor(pairs[0][0]))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TaskError(
            "a Dataset must have a length and give (input, target) pairs of tensors of one shape: "
            f"{reason}"
        ) from error
    if not same:
        raise TaskError(
            "the Dataset gives another example 0 each time; leave random transforms out of it and "
            "give them as augment"
        )
    return inputs, targets


def _as_tensor(values: Any, name: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    try:
        found = torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"{name} must be a tensor or an array [N, …], not {type(values).__name__}"
        ) from error
    if found.ndim == 0:
        raise TaskError(f"{name} must be a tensor or an array [N, …], not one number")
    if found.is_floating_point():  # NumPy's doubles meet models of single precision
        return found.to(torch.get_default_dtype())
    return found if name == "inputs" and found.dtype == torch.bool else found.to(torch.int64)

"""What enters a model: a tensor, or a tuple or mapping of tensors, samples along the first axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from coarlib.errors import HistoryError

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]


def as_inputs(inputs: Any) -> Inputs:
    """Check what a user gave.

    Raises
    ------
    HistoryError
        If it is anything else, or its tensors differ in length.
    """
    given: Any = inputs
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif isinstance(inputs, list | tuple):
        given = tuple(inputs)
    leaves = tree_leaves(given)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise HistoryError("inputs must be a tensor, or a tuple or mapping of tensors")
    if len({len(leaf) for leaf in leaves}) > 1:
        raise HistoryError("the tensors of the inputs differ in their number of samples")
    return given


def number_of(inputs: Inputs) -> int:
    """Return how many samples there are."""
    return len(tree_leaves(inputs)[0])


def each(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Any:
    """Apply a function to every tensor."""
    return tree_map(function, inputs)


def call(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: Inputs) -> torch.Tensor:
    """Return the model's outputs at some parameters, the ``logits`` where it returns more."""
    if isinstance(inputs, Mapping):
        outputs = functional_call(model, dict(parameters), (), dict(inputs))
    else:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        outputs = functional_call(model, dict(parameters), arguments)
    found: torch.Tensor = getattr(outputs, "logits", outputs)
    return found

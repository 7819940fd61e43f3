"""The examples whose outputs are recorded, and what people may hand in as such."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from coarlib.errors import TaskError
from coarlib.outputs import IGNORED


@dataclass
class Examples:
    """The examples whose outputs are recorded, in the order of the targets of a row.

    Attributes
    ----------
    inputs : tuple of Tensor, each [T, …]
        The arguments of the model.
    targets : Tensor [T, …]
        What the output functions compare with, such as class indices.
    resident : bool
        Keep everything on the device (the default). False moves one batch at a time, for data
        that does not fit.
    keywords : tuple of str
        Names of the arguments, where they are given by keyword.
    """

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor
    resident: bool = True
    keywords: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def attention(self) -> torch.Tensor | None:
        """Which positions of sequences are no padding, bool [T, L]; None for other examples.

        That is the input called ``attention_mask``, or the first after the tokens that looks like
        one; else what lies up to the last target that counts.
        """
        if "attention_mask" in self.keywords:
            return self.inputs[self.keywords.index("attention_mask")].bool()
        first, *rest = self.inputs
        for tensor in rest:
            if tensor.ndim == 2 and tensor.shape == first.shape[:2] and _is_mask(tensor):
                return tensor.bool()
        if self.targets.ndim != 2 or self.targets.shape != first.shape[:2]:
            return None
        counts = self.targets.flip(1) != IGNORED
        after = counts.long().cumsum(1).flip(1) > 0
        return torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)

    def counted(self, shape: torch.Size) -> torch.Tensor | None:
        """Return which entries of an activation's ``shape`` (less its channels) are no padding.

        None where the activation does not lie along the positions of the sequences, so that all
        of it counts.
        """
        attention = self.attention
        if attention is None:
            return None
        examples, length = attention.shape
        if shape == attention.shape:
            return attention
        if shape == (length, examples):
            return attention.T
        if shape == (examples * length,):
            return attention.reshape(-1)
        if len(shape) > 2 and (shape[0], shape[-1]) == (examples, length):
            return attention.reshape(examples, *[1] * (len(shape) - 2), length).expand(shape)
        return None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Examples:
        """Return the examples with every tensor changed."""
        inputs = tuple(change(tensor) for tensor in self.inputs)
        return replace(self, inputs=inputs, targets=change(self.targets))

    def take(self, index: torch.Tensor | slice) -> Examples:
        """Return some of the examples, in the order of an index."""
        return self.map(lambda x: x[index if isinstance(index, slice) else index.to(x.device)])

    def to(self, device: torch.device) -> Examples:
        """Return the examples on a device, images in channels-last order."""
        moved = self.map(lambda x: x.to(device))
        return replace(moved, inputs=tuple(map(_channels_last, moved.inputs)))

    def batches(self, size: int) -> Iterator[tuple[slice, Examples]]:
        """Iterate over consecutive batches with the positions they come from."""
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self.take(where)

    def whole_batches(self, size: int) -> Iterator[tuple[slice, Examples]]:
        """Do so with batches of one size: the last one begins among the examples before it."""
        for start in range(0, len(self), size):
            where = slice(max(0, min(start, len(self) - size)), min(start + size, len(self)))
            yield where, self.take(where)


def as_examples(given: Any, source: str = "examples") -> Examples:
    """Make examples of what people hand in, or say in one sentence why not.

    Parameters
    ----------
    given : Examples, or a pair (inputs, targets)
        Inputs are a tensor, array or list, or a tuple or mapping of them; targets one of them.
    source : str
        What to call it in messages.

    Raises
    ------
    TaskError
        If something is no array of numbers, or lengths differ, or there is no example.
    """
    keywords: tuple[str, ...] = ()
    resident = True
    if isinstance(given, Examples):
        inputs, targets = given.inputs, given.targets
        resident, keywords = given.resident, given.keywords
    elif isinstance(given, tuple | list) and len(given) == 2:
        inputs, targets = given
    else:
        raise TaskError(
            f"{source} must be coarlib.ablation.Examples or a pair (inputs, labels), not "
            f"{type(given).__name__}"
        )
    if isinstance(inputs, Mapping):
        keywords, inputs = tuple(map(str, inputs)), tuple(inputs.values())
    elif not isinstance(inputs, tuple):
        inputs = (inputs,)
    names = keywords or range(len(inputs))
    made = tuple(_tensor(x, f"input {n}", source) for n, x in zip(names, inputs, strict=True))
    found = Examples(made, _tensor(targets, "the labels", source), resident, keywords)
    lengths = {len(tensor) for tensor in (*made, found.targets)}
    if not made or len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in made)
        raise TaskError(
            f"{source} need inputs and labels of one length, at least 1, not inputs of "
            f"{shapes or 'no shape'} and labels of {list(found.targets.shape)}"
        )
    return found


def _tensor(value: Any, what: str, source: str) -> torch.Tensor:
    """Return a tensor with at least one axis."""
    try:
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise TaskError(f"{what} of {source} have masked entries; leave those examples out")
        if not isinstance(value, torch.Tensor):
            value = torch.from_numpy(np.require(np.asarray(value), requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{what} of {source} are no array of numbers with one length in every row "
            f"({type(value).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if not value.ndim:
        raise TaskError(f"{what} of {source} are a single number; one entry an example is needed")
    return value.detach()


def _is_mask(tensor: torch.Tensor) -> bool:
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    return bool(((tensor == 0) | (tensor == 1)).all()) and bool(tensor.bool().any(1).all())


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor

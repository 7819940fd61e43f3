"""Which parameter lies where in a row of a history: names, shapes, optimizer groups, columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from coarlib.errors import HistoryError

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ParameterTable:
    """Trained parameters in the order of ``named_parameters``, laid end to end in one row.

    Attributes
    ----------
    names : tuple of str
    shapes : tuple of shapes
    groups : tuple of int
        The optimizer's parameter group of each tensor.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Entries of each tensor."""
        return [prod(shape) for shape in self.shapes]

    @property
    def total(self) -> int:
        """Entries of a row (P)."""
        return sum(self.sizes)

    def views(self, flat: torch.Tensor) -> Tensors:
        """Split rows ``[..., P]`` into named views ``[..., *shape]`` of them."""
        pieces = flat.split(self.sizes, -1)
        named = zip(self.names, pieces, self.shapes, strict=True)
        return {name: piece.view(*flat.shape[:-1], *shape) for name, piece, shape in named}

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Lay named tensors end to end, ``[P]``; a missing one counts as zeros."""
        filled = next(iter(tensors.values()))
        return torch.cat(
            [
                tensors[name].detach().reshape(-1) if name in tensors else filled.new_zeros(size)
                for name, size in zip(self.names, self.sizes, strict=True)
            ]
        )

    def subset(self, names: Sequence[str]) -> ParameterTable:
        """Return the table of some of the tensors, in the same order."""
        rows = [i for i, name in enumerate(self.names) if name in set(names)]
        return ParameterTable(
            tuple(self.names[i] for i in rows),
            tuple(self.shapes[i] for i in rows),
            tuple(self.groups[i] for i in rows),
        )

    def as_json(self) -> list[list[Any]]:
        """Return ``[[name, shape, group], …]``."""
        rows = zip(self.names, self.shapes, self.groups, strict=True)
        return [[name, list(shape), group] for name, shape, group in rows]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[Any]]) -> ParameterTable:
        """Read what :meth:`as_json` gave."""
        return cls(
            tuple(str(row[0]) for row in rows),
            tuple(tuple(int(size) for size in row[1]) for row in rows),
            tuple(int(row[2]) for row in rows),
        )

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> ParameterTable:
        """List what ``optimizer`` trains of ``model``.

        Raises
        ------
        HistoryError
            If the optimizer trains something that is not a parameter of the model, or the
            parameters differ in dtype.
        """
        group_of = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            if parameter.requires_grad
        }
        found = [(n, p) for n, p in model.named_parameters() if id(p) in group_of]
        if len(found) < len(group_of):
            raise HistoryError(
                "the optimizer trains tensors that are not parameters of the model; "
                "build it from model.parameters() of the model that is recorded"
            )
        if not found:
            raise HistoryError("the optimizer trains no parameter of the model")
        if len({parameter.dtype for _, parameter in found}) > 1:
            raise HistoryError("the trained parameters have different dtypes; use one")
        return cls(
            tuple(name for name, _ in found),
            tuple(tuple(parameter.shape) for _, parameter in found),
            tuple(group_of[id(parameter)] for _, parameter in found),
        )

"""An edited model: components ablated in place until it is undone."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation import ComponentSet, WeightAblation


class Edit:
    """An ablation that stays until it is undone.

    Parameters
    ----------
    model : nn.Module
        Changed in place while the edit holds.
    components : ComponentSet
    ablated : sequence of int
        Indices of the components to ablate.

    Use :meth:`undo`, or as a context manager that undoes on leaving; ``model.state_dict()`` is
    what to save.
    """

    def __init__(
        self, model: nn.Module, components: ComponentSet, ablated: Sequence[int] | NDArray[Any]
    ) -> None:
        mask = torch.ones(len(components), dtype=torch.bool)
        for index in np.asarray(ablated, dtype=np.int64).tolist():
            components.locate(index)  # refuses what does not exist
            mask[index] = False
        self._ablation = WeightAblation(model, components)
        self._ablation.__enter__()
        self._ablation.apply(mask)

    def undo(self) -> None:
        """Give the model back the bits it had before."""
        self._ablation.__exit__(None, None, None)

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

"""An edited model: components ablated in place until it is undone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation import ComponentSet, WeightAblation
from coarlib.errors import ComponentError

# The edits of each model that hold, oldest first.
_OPEN: weakref.WeakKeyDictionary[nn.Module, list[Edit]] = weakref.WeakKeyDictionary()


class Edit:
    """An ablation of weights that stays until it is undone.

    Parameters
    ----------
    model : nn.Module
        Changed in place while the edit holds.
    components : ComponentSet
    ablated : sequence of int
        Indices of the components to ablate.
    factor : float
        What the ablated weights are multiplied with.

    Raises
    ------
    ComponentError
        If a component does not exist, or ``ablated`` is a mask instead of indices.

    Notes
    -----
    Use :meth:`undo`, or as a context manager that undoes on leaving; ``model.state_dict()`` is
    what to save. Edits of one model may be undone in any order: what remains is what the edits
    that still hold would have made of the untouched model.
    """

    def __init__(
        self,
        model: nn.Module,
        components: ComponentSet,
        ablated: Sequence[int] | NDArray[Any],
        factor: float = 0.0,
    ) -> None:
        indices = np.atleast_1d(np.asarray(ablated))
        if indices.size and indices.dtype.kind not in "iu":
            raise ComponentError(
                f"ablated takes indices of components, not {indices.dtype} values; a mask of kept "
                "components says them as np.flatnonzero(~mask)"
            )
        if indices.ndim > 1:
            raise ComponentError(
                f"ablated takes a list of components, not an array of shape {list(indices.shape)}"
            )
        self._mask = torch.ones(len(components), dtype=torch.bool)
        for index in indices.tolist():
            components.locate(index)  # refuses what does not exist
            self._mask[index] = False
        self._model, self._ablation = model, WeightAblation(model, components, factor)
        self._hold()
        _OPEN.setdefault(model, []).append(self)

    def _hold(self) -> None:
        self._ablation.__enter__()
        self._ablation.apply(self._mask)

    def _let_go(self) -> None:
        self._ablation.__exit__(None, None, None)

    def undo(self) -> None:
        """Take this edit back; a second call changes nothing."""
        open_edits = _OPEN.get(self._model, [])
        if self not in open_edits:
            return
        # Later edits remember weights that this one changed: they are laid anew without it.
        place = open_edits.index(self)
        later = open_edits[place + 1 :]
        for edit in reversed(later):
            edit._let_go()
        self._let_go()
        del open_edits[place]
        for edit in later:
            edit._hold()

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

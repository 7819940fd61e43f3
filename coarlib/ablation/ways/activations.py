"""Ablating the activations of components instead of their weights, by hooks.

What an ablated component sends on is replaced; by what, subclasses say. The model's parameters are
never touched.
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Self

import torch
from torch import nn

from coarlib.ablation.activations import Hooks, sites_of
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.ways.base import Ablation


class ActivationAblation(Ablation):
    """Replaces the activations of ablated components while the context is open.

    Parameters
    ----------
    model : nn.Module
    components : ComponentSet

    Raises
    ------
    ComponentError
        If hooks cannot reach a component.
    """

    on_weights: ClassVar[bool] = False

    def __init__(self, model: nn.Module, components: ComponentSet) -> None:
        self.components = components
        self.sites = sites_of(model, components)
        self._kept: list[torch.Tensor | None] = [None] * len(self.sites)
        self._hooks = Hooks(model, self.sites, self._change)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self.restore()

    def apply(self, mask: torch.Tensor) -> None:
        """Leave exactly the components kept that the mask (bool [N], True = kept) keeps."""
        self.components.check_masks(mask[None])
        mask = mask.cpu()
        for at, site in enumerate(self.sites):
            kept = site.channels.kept(mask)
            self._kept[at] = None if bool(kept.all()) else kept

    def restore(self) -> None:
        """Keep every component."""
        self._kept = [None] * len(self.sites)

    def _change(self, index: int, activation: torch.Tensor) -> torch.Tensor:
        kept, site = self._kept[index], self.sites[index]
        if kept is None:
            return activation
        keep = site.spread(kept.to(activation.device), activation)
        return torch.where(keep, activation, self.replaced(site, index, activation))

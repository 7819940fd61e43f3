"""Activations to their mean over the examples."""

from __future__ import annotations

from typing import ClassVar

import torch

from coarlib.ablation.activations import Hooks, Site
from coarlib.ablation.examples import Examples
from coarlib.ablation.ways.activations import ActivationAblation
from coarlib.ablation.ways.base import Context, register
from coarlib.errors import ComponentError


@register
class Mean(ActivationAblation):
    """Replaces activations by their mean over all examples and all positions that count.

    Padding does not count (:attr:`Examples.attention <coarlib.ablation.Examples>`), so neither
    the batch size nor a longer text among the examples changes what a mean is.

    Raises
    ------
    ComponentError
        If the examples never reach a component.
    """

    name: ClassVar[str] = "mean"

    def __init__(self, context: Context) -> None:
        super().__init__(context.model, context.components)
        self._means = channel_means(context, self.sites)

    def replaced(self, site: Site, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return the mean of each channel."""
        return site.spread(self._means[index].to(activation), activation)


def channel_means(context: Context, sites: list[Site]) -> list[torch.Tensor]:
    """Return the mean of each channel of each site over all examples: float64 [C] a site."""
    sums: list[torch.Tensor | float] = [0.0] * len(sites)
    counts = [0] * len(sites)
    batch: Examples

    def record(index: int, activation: torch.Tensor) -> torch.Tensor:
        flat = activation.detach().movedim(sites[index].channel, -1)
        counted = batch.counted(flat.shape[:-1])
        flat = flat.reshape(-1, flat.shape[-1]).double()
        if counted is not None:
            flat = flat[counted.to(flat.device).reshape(-1)]
        sums[index] = sums[index] + flat.sum(0)
        counts[index] += len(flat)
        return activation

    with torch.no_grad(), Hooks(context.model, sites, record):
        for batch in context.batches():
            context.run(batch)
    for site, count in zip(sites, counts, strict=True):
        if not count:
            raise ComponentError(f"the examples never reach {site.channels.path}")
    return [torch.as_tensor(s / count) for s, count in zip(sums, counts, strict=True)]

"""Activations to what the intact model sends on for another example."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.activations import Site
from coarlib.ablation.ways.activations import ActivationAblation
from coarlib.ablation.ways.base import Context, register
from coarlib.ablation.ways.example_axes import example_axes
from coarlib.ablation.ways.mean import channel_means
from coarlib.errors import ComponentError

# Keeps these draws apart from those of masks, whose Philox counters start at zero.
_COUNTER = 1 << 192


@register
class Resample(ActivationAblation):
    """Replaces activations by those of another example in the intact model.

    In row r example t gets the activation of example π(t), where π is drawn from (seed, r), has
    no fixed point, and is the same for all components. The model runs on a batch and its partners
    at once; the partners stay intact, so that nothing depends on the size of the batch.

    Raises
    ------
    ComponentError
        If there are fewer than two examples, or an activation does not lie example by example
        along one of its axes.
    """

    name: ClassVar[str] = "resample"

    def __init__(self, context: Context) -> None:
        super().__init__(context.model, context.components)
        if context.num_examples < 2:
            raise ComponentError("resampling needs at least two examples")
        self._seed, self._count = context.seed, context.num_examples
        self._drawn: tuple[int, NDArray[np.int64]] = -1, np.empty(0, np.int64)
        self._axes = example_axes(
            context, self.sites, "resampled; take mean or zero_activation instead"
        )
        self._context = context
        self._means: list[torch.Tensor] | None = None
        self._beside = False

    def partners(self, row: int, where: slice) -> NDArray[np.int64]:
        """Return π(t) for the examples t of a batch."""
        self._beside = True
        if self._drawn[0] != row:
            self._drawn = row, derangement(self._seed, row, self._count)
        return self._drawn[1][where]

    def replaced(self, site: Site, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return the second half of the examples twice: the partners' own activations.

        Where a batch runs without partners (attribution patching), it is what they are on average
        over all draws and positions: the mean.
        """
        if not self._beside:
            if self._means is None:
                self._means = channel_means(self._context, self.sites)
            return site.spread(self._means[index].to(activation), activation)
        axis = self._axes[index]
        half = activation.shape[axis] // 2
        partners = activation.narrow(axis, half, half)
        return torch.cat([partners, partners], axis)

    def restore(self) -> None:
        """Keep every component."""
        super().restore()
        self._beside = False


def derangement(seed: int, row: int, count: int) -> NDArray[np.int64]:
    """Draw a permutation without fixed points, int64 [count ≥ 2]: one cycle in random order.

    Every element is as likely as every other to be put in another one's place.
    """
    key = np.array([seed % 2**64, row], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=_COUNTER))
    cycle = generator.permutation(count)
    found = np.empty(count, dtype=np.int64)
    found[cycle] = np.roll(cycle, -1)
    return found

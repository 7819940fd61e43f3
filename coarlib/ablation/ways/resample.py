"""Activations to what the intact model sends on for another example."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.activations import Hooks, Site
from coarlib.ablation.ways.activations import ActivationAblation
from coarlib.ablation.ways.base import Context, register
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
        self._axes = example_axes(context, self.sites)
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


def example_axes(context: Context, sites: list[Site]) -> list[int]:
    """Find the axis of each site's activation along which the examples lie.

    The first example is run twice and three times over: the axis grows by half. Then a batch is
    run in both orders: the activations have to come in the order of the examples.

    Raises
    ------
    ComponentError
        If an activation has no such axis, as in experts to which tokens are sent.
    """
    batch = next(iter(context.batches()))
    few = min(len(batch), 4)
    order = torch.arange(few)
    if few == 1:  # batches of one: two copies stand for two examples
        order = torch.zeros(2, dtype=torch.long)
    runs = [
        _recorded(context, sites, batch.take(index))
        for index in (torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    ]
    forth, back = (_recorded(context, sites, batch.take(x)) for x in (order, order.flip(0)))
    axes = []
    for at, site in enumerate(sites):
        shapes = [[tuple(x.shape) for x in run[at]] for run in runs]
        axis = _growing(shapes[0], shapes[1])
        if axis is None or not _reversed(forth[at], back[at], axis, len(order)):
            raise ComponentError(
                f"the activation of {site.channels.path} does not lie example by example along an "
                "axis (are tokens sent to experts?), so it cannot be resampled; take mean or "
                "zero_activation instead"
            )
        axes.append(axis)
    return axes


def _recorded(context: Context, sites: list[Site], batch: object) -> list[list[torch.Tensor]]:
    found: list[list[torch.Tensor]] = [[] for _ in sites]

    def record(index: int, activation: torch.Tensor) -> torch.Tensor:
        found[index].append(activation.detach().clone())
        return activation

    with torch.no_grad(), Hooks(context.model, sites, record):
        context.run(batch)  # type: ignore[arg-type]
    return found


def _growing(two: list[tuple[int, ...]], three: list[tuple[int, ...]]) -> int | None:
    """Return the axis that has two thirds of its length with two examples instead of three."""
    if len(two) != len(three) or not two:
        return None
    for axis in range(len(two[0])):
        pairs = zip(two, three, strict=True)
        if all(axis < len(a) and 3 * a[axis] == 2 * b[axis] for a, b in pairs):
            return axis
    return None


def _reversed(forth: list[torch.Tensor], back: list[torch.Tensor], axis: int, count: int) -> bool:
    """Whether activations of examples in reversed order are those in order, reversed."""
    if len(forth) != len(back):
        return False
    for one, other in zip(forth, back, strict=True):
        if one.shape != other.shape or one.shape[axis] % count:
            return False
        flipped = torch.cat(list(other.tensor_split(count, axis))[::-1], axis)
        if not torch.allclose(one.float(), flipped.float(), rtol=1e-2, atol=1e-3):
            return False
    return True

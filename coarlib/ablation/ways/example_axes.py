"""Along which axis of an activation the examples lie."""

from __future__ import annotations

import torch

from coarlib.ablation.activations import Hooks, Site
from coarlib.ablation.ways.base import Context
from coarlib.errors import ComponentError


def example_axes(context: Context, sites: list[Site], purpose: str) -> list[int]:
    """Find the axis of each site's activation along which the examples lie.

    The first example is run twice and three times over: the axis grows by half. Then a batch is
    run in both orders: the activations have to come in the order of the examples.

    Parameters
    ----------
    context : Context
        Of a model, its batches, and how it runs.
    sites : list of Site
    purpose : str
        What this is for, as a message ends: ``"resampled"``.

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
                f"axis (are tokens sent to experts?), so it cannot be {purpose}"
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

"""Whether ablation reaches what it should: asked of the model as it runs.

Nothing of an ablated block may be left; and activations can only be replaced where hooks fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from coarlib.ablation.activations import Hooks, sites_of
from coarlib.ablation.blocks import weights
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.slices import SliceGroup
from coarlib.errors import ComponentError

_TOLERANCE = 1e-4


class _Reached(BaseException):
    """The block has been called: the rest of the model need not run."""


def check_blocks(model: nn.Module, components: ComponentSet, run: Callable[[], object]) -> None:
    """Refuse a block of which something still acts when it is ablated, or past which nothing goes.

    With what the block writes with at zero, its other weights must make no difference to what it
    gives on, but for one layer that is a shortcut; and that must still depend on the example.

    Parameters
    ----------
    model : nn.Module
        As it came, not folded; left as it was.
    components : ComponentSet
        Only those of kind ``block`` are looked at.
    run : callable
        Runs the model on a few different examples.

    Raises
    ------
    ComponentError
    """
    groups = [g for g in components if isinstance(g, SliceGroup) and g.kind == "block"]
    nothing: list[str] = []
    for group in groups:
        block = model.get_submodule(group.module)
        own = weights(group.module, block)
        ablated = [model.get_parameter(piece.path) for piece in group.slices]
        others = {n: p for n, p in own.items() if not any(p is some for some in ablated)}
        with _zero(ablated):
            given = _given_on(block, run)
            if not given:
                raise ComponentError(
                    f"{group.module} is not called as a module when the model runs (its forward is "
                    "called directly, or not at all), so whether ablating it leaves nothing of it "
                    "cannot be checked; exclude it, or take other kinds of components"
                )
            with _zero(others.values()):
                left = [] if _close(given, _given_on(block, run)) else list(others)
            acting = []
            for name in left:
                with _zero([others[name]]):
                    if not _close(given, _given_on(block, run)):
                        acting.append(name)
        if len(acting) > 1:
            raise ComponentError(
                f"ablating the block {group.module} leaves a part of it in place: "
                f"{', '.join(acting[:3])} still act on what it gives on; name the slices that "
                "write into the stream yourself (slice_components)"
            )
        if not _depends(given) and _depends(_given_on(block, run)):
            nothing.append(group.module)
    if nothing:
        several = f" ({len(nothing)} of {len(groups)} blocks)" if len(nothing) > 1 else ""
        raise ComponentError(
            f"nothing goes past {', '.join(nothing)}{several} when ablated, so it is no residual "
            "block; exclude it, or take other kinds of components"
        )


def check_reached(
    model: nn.Module, components: ComponentSet, run: Callable[[], torch.Tensor]
) -> None:
    """Refuse components whose activations hooks miss though the model uses their weights.

    Parameters
    ----------
    model, components
        As for :func:`check_blocks`, all components.
    run : callable
        Runs the model on a few examples and returns its logits.

    Raises
    ------
    ComponentError
    """
    sites, fired = sites_of(model, components), set()

    def note(index: int, activation: torch.Tensor) -> torch.Tensor:
        fired.add(index)
        return activation

    with Hooks(model, sites, note):
        intact = run()
    for index, site in enumerate(sites):
        if index in fired:
            continue
        with _zero([model.get_parameter(site.channels.path)]):
            changed = not _close([intact], [run()])
        if changed:
            raise ComponentError(
                f"the model uses {site.channels.path} without calling {site.channels.module}, so "
                "its activations cannot be replaced; take a way of ablating that changes weights"
            )


@contextmanager
def _zero(parameters: Sequence[nn.Parameter] | Any) -> Iterator[None]:
    """Set parameters to zero meanwhile."""
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, _ in kept:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def _given_on(block: nn.Module, run: Callable[[], object]) -> list[torch.Tensor]:
    """Return what a block gives on when it is called for the first time: its first tensor."""
    found: list[torch.Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        every = output.values() if isinstance(output, Mapping) else output
        every = every if isinstance(output, Mapping | tuple | list) else [output]
        found.extend([x for x in every if isinstance(x, torch.Tensor)][:1])
        raise _Reached

    handle = block.register_forward_hook(hook)
    try:
        run()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found


def _depends(given: list[torch.Tensor]) -> bool:
    """Whether what a block gives on differs between examples."""
    return any(len(x) > 1 and not torch.equal(x[:1].expand_as(x), x) for x in given)


def _close(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE) for x, y in pairs)

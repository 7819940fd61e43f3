"""Where the activations of components are: the sites that hooks can read and change.

The weights of a unit act through one activation: a filter or a row through the channel of the
output it makes, an input slice (an attention head, an MLP neuron, an input of GPT-2's Conv1D)
through the channel it reads. ``site_of`` finds that place, :class:`Recorder` records it with its
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coarlib.ablation.components import ComponentGroup, ComponentSet
from coarlib.ablation.selection import is_conv1d
from coarlib.errors import ComponentError


@dataclass(frozen=True)
class Site:
    """The activation that a group's weights act through.

    Attributes
    ----------
    module : nn.Module
    at_input : bool
        The module's first input, not its output.
    channel : int
        The axis of the activation along which the units lie.
    bias : Tensor or None
        What remains of an output when its weights are zero.
    """

    group: ComponentGroup
    module: nn.Module
    at_input: bool
    channel: int
    bias: torch.Tensor | None

    def by_unit(self, activation: torch.Tensor) -> torch.Tensor:
        """Sum [T, …] over everything but the example and the unit: [T, units]."""
        moved = activation.movedim(self.channel, -1)
        summed = moved.reshape(moved.shape[0], -1, moved.shape[-1]).sum(1)
        return summed.reshape(len(summed), self.group.units, self.group.width).sum(2)

    def spread(self, values: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
        """Bring values of channels [C] or [T, C] to the shape of an activation."""
        shape = [1] * activation.ndim
        shape[self.channel] = values.shape[-1]
        if values.ndim == 2:
            shape[0] = values.shape[0]
        return values.reshape(shape)

    def without_bias(self, activation: torch.Tensor) -> torch.Tensor:
        """Return the part of an activation that is proportional to the weights."""
        if self.bias is None:
            return activation
        return activation - self.spread(self.bias, activation)


def site_of(model: nn.Module, group: ComponentGroup) -> Site:
    """Find the activation of a group of components.

    Raises
    ------
    ComponentError
        If the module does not pass through hooks (``nn.MultiheadAttention`` reads its projections
        directly) or its kind is unknown.
    """
    module = model.get_submodule(group.module)
    owner = model.get_submodule(group.module.rpartition(".")[0])
    bias = getattr(module, "bias", None)
    bias = bias.detach() if isinstance(bias, torch.Tensor) else None
    known = group.parameter == "weight" and not isinstance(owner, nn.MultiheadAttention)
    if known and isinstance(module, _ConvNd):
        if group.axis == int(isinstance(module, _ConvTransposeNd)):
            return Site(group, module, False, 1, bias)
    elif known and isinstance(module, nn.Linear):
        at_input = group.axis == 1
        return Site(group, module, at_input, -1, None if at_input else bias)
    elif known and is_conv1d(module):
        at_input = group.axis == 0
        return Site(group, module, at_input, -1, None if at_input else bias)
    elif known and group.kind == "norm_channel":
        channel = 1 if isinstance(module, _BatchNorm | nn.GroupNorm) else -1
        return Site(group, module, False, channel, bias)
    raise ComponentError(
        f"the activations of {group.path} (axis {group.axis}, {type(module).__name__}) cannot be "
        "reached by hooks, so methods that need activations do not apply to it"
    )


class Hooks:
    """Calls a function with the activation of each site; the result replaces the activation.

    Parameters
    ----------
    sites : sequence of Site
    change : callable (index of the site, activation) -> activation

    Use as a context manager: the hooks are gone on leaving it.
    """

    def __init__(
        self, sites: list[Site], change: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> None:
        self._sites, self._change = sites, change
        self._handles: list[Any] = []

    def __enter__(self) -> Hooks:
        for index, site in enumerate(self._sites):
            if site.at_input:
                hook = site.module.register_forward_pre_hook(self._before(index))
            else:
                hook = site.module.register_forward_hook(self._after(index))
            self._handles.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self._change(index, inputs[0]), *inputs[1:])

        return hook

    def _after(self, index: int) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return self._change(index, output)

        return hook


class Recorder:
    """Records the activations of all components, with what gradients need.

    Parameters
    ----------
    model : nn.Module
    components : ComponentSet

    Use :meth:`run`.
    """

    def __init__(self, model: nn.Module, components: ComponentSet) -> None:
        self.sites = [site_of(model, group) for group in components]

    def run(
        self, outputs_of: Callable[[], torch.Tensor]
    ) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
        """Run the model and differentiate.

        Parameters
        ----------
        outputs_of : callable
            Runs the model on a batch of T examples, each on its own (evaluation mode), and returns
            one number an example, [T].

        Returns
        -------
        activations, gradients : for each site, one tensor a call of its module
            The gradient at position t is that of output t, by this path alone.
        """
        found: list[list[torch.Tensor]] = [[] for _ in self.sites]

        def record(index: int, activation: torch.Tensor) -> torch.Tensor:
            # A node of its own, so that the gradient at an input is this module's part only.
            own = activation.view_as(activation)
            if not own.requires_grad:
                own = own.detach().requires_grad_()
            found[index].append(own)
            return own.clone()  # what follows may work in place

        with torch.enable_grad(), Hooks(self.sites, record):
            outputs = outputs_of()
            flat = [activation for calls in found for activation in calls]
            gradients = torch.autograd.grad(outputs.sum(), flat, allow_unused=True)
        filled = iter(
            torch.zeros_like(a) if g is None else g for a, g in zip(flat, gradients, strict=True)
        )
        activations = [[a.detach() for a in calls] for calls in found]
        return activations, [[next(filled) for _ in calls] for calls in found]

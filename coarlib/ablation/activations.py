"""Where the activations of components are: the sites that hooks can read and change.

The weights of a unit act through one activation: a filter or a row through the channel of the
output it makes, an input slice (an attention head, an MLP neuron, an input of GPT-2's Conv1D)
through the channel it reads. ``sites_of`` finds that place, :class:`Recorder` records it with its
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coarlib.ablation.attention import opened, without_fast_path
from coarlib.ablation.compiling import uncompiled
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.plain import unwrapped
from coarlib.ablation.selection import is_conv1d
from coarlib.ablation.slices import Channels
from coarlib.errors import ComponentError


@dataclass(frozen=True)
class Site:
    """The activation that a group's weights act through.

    Attributes
    ----------
    channels : Channels
        Which channels of the activation belong to which component.
    module : nn.Module
    at_input : bool
        The module's first input, not its output.
    channel : int
        The axis of the activation along which the channels lie.
    bias : Tensor or None
        What remains of an output when its weights are zero.
    attention : nn.MultiheadAttention or None
        The attention that has to be opened for hooks on ``module`` to fire.
    """

    channels: Channels
    module: nn.Module
    at_input: bool
    channel: int
    bias: torch.Tensor | None
    attention: nn.MultiheadAttention | None = None

    def by_channel(self, activation: torch.Tensor) -> torch.Tensor:
        """Sum [T, …] over everything but the example and the channel: [T, C]."""
        moved = activation.movedim(self.channel, -1)
        return moved.reshape(moved.shape[0], -1, moved.shape[-1]).sum(1)

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


def sites_of(model: nn.Module, components: ComponentSet) -> list[Site]:
    """Find the activations of components, one site an axis of a parameter.

    Raises
    ------
    ComponentError
        If a component is a slice whose activation hooks cannot reach.
    """
    model = unwrapped(model)
    return [_site(model, channels) for channels in components.channels(model)]


def _site(model: nn.Module, channels: Channels) -> Site:
    module = model.get_submodule(channels.module)
    owner = model.get_submodule(channels.module.rpartition(".")[0])
    attention = owner if isinstance(owner, nn.MultiheadAttention) else None
    bias = getattr(module, "bias", None)
    bias = bias.detach() if isinstance(bias, torch.Tensor) else None
    known, axis = channels.parameter == "weight", channels.axis
    if isinstance(module, nn.MultiheadAttention):
        if channels.parameter == "in_proj_weight" and axis == 0:
            bias = None if module.in_proj_bias is None else module.in_proj_bias.detach()
            return Site(channels, nn.Identity(), False, -1, bias, module)
    elif known and isinstance(module, _ConvNd):
        if axis == int(isinstance(module, _ConvTransposeNd)):
            return Site(channels, module, False, 1, bias)
    elif known and isinstance(module, nn.Linear):
        return Site(channels, module, axis == 1, -1, None if axis == 1 else bias, attention)
    elif known and is_conv1d(module):
        return Site(channels, module, axis == 0, -1, None if axis == 0 else bias)
    elif known and isinstance(module, _BatchNorm | nn.GroupNorm):
        return Site(channels, module, False, 1, bias)
    elif known and channels.kind == "norm_channel":
        return Site(channels, module, False, -1, bias)
    raise ComponentError(
        f"the activations of {channels.path} (axis {axis}, {type(module).__name__}) cannot be "
        "reached by hooks, so methods that need activations do not apply to it"
    )


class Hooks:
    """Calls a function with the activation of each site; the result replaces the activation.

    Parameters
    ----------
    model : nn.Module
        Runs uncompiled meanwhile, since compiled code does not look for new hooks.
    sites : sequence of Site
    change : callable (index of the site, activation) -> activation

    Use as a context manager: the hooks are gone on leaving it.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: list[Site],
        change: Callable[[int, torch.Tensor], torch.Tensor],
    ) -> None:
        self._model, self._sites, self._change = model, sites, change
        self._handles: list[Any] = []
        self._opened = ExitStack()

    def __enter__(self) -> Hooks:
        self._open()
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
        self._opened.close()

    def _open(self) -> None:
        taps: dict[nn.MultiheadAttention, nn.Module | None] = {}
        for site in self._sites:
            if site.attention is not None:
                is_tap = isinstance(site.module, nn.Identity)
                taps[site.attention] = site.module if is_tap else taps.get(site.attention)
        self._opened.enter_context(without_fast_path())
        self._opened.enter_context(uncompiled(self._model))
        for attention, tap in taps.items():
            self._opened.enter_context(opened(attention, tap))

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
        self.model, self.sites = model, sites_of(model, components)
        self.num_components = len(components)

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

        with torch.enable_grad(), Hooks(self.model, self.sites, record):
            outputs = outputs_of()
            flat = [activation for calls in found for activation in calls]
            for site, calls in zip(self.sites, found, strict=True):
                if any(len(activation) != len(outputs) for activation in calls):
                    raise ComponentError(
                        f"the activation of {site.channels.path} does not have the examples along "
                        "its first axis (batch_first=False?), so it cannot be told apart by example"
                    )
            gradients = torch.autograd.grad(outputs.sum(), flat, allow_unused=True)
        filled = iter(
            torch.zeros_like(a) if g is None else g for a, g in zip(flat, gradients, strict=True)
        )
        activations = [[a.detach() for a in calls] for calls in found]
        return activations, [[next(filled) for _ in calls] for calls in found]

    def by_component(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Sum what each site's channels [T, C] have by component: float64 [T, N]."""
        shape = len(values[0]), self.num_components
        sums = torch.zeros(shape, dtype=torch.float64, device=values[0].device)
        for site, found in zip(self.sites, values, strict=True):
            site.channels.sum_by_component(found, sums)
        return sums

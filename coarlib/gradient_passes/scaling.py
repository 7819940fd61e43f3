"""One forward and one backward pass under masks of real numbers, a mask for each example.

What components send on is scaled, between all of it and what is left where they are ablated. Where
hooks cannot tell the examples of an activation apart (tokens sent to experts, weights of experts in
one tensor), the weights are scaled instead, one example at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from coarlib.ablation.activations import Hooks, sites_of
from coarlib.ablation.examples import Examples
from coarlib.ablation.plain import unwrapped
from coarlib.ablation.precision import computing_in
from coarlib.ablation.slices import Channels
from coarlib.ablation.task import ComponentTask
from coarlib.ablation.ways import Ablation, Context, WeightAblation
from coarlib.ablation.ways.example_axes import example_axes
from coarlib.errors import CoarlibError, ComponentError, first_line
from coarlib.outputs import Output

__all__ = ["Scaling", "scaling_of"]

FEW = 4


class Scaling(ABC):
    """Runs a model under masks of real numbers and differentiates its outputs by them.

    Parameters
    ----------
    task : ComponentTask
        Prepared.
    output : callable (logits, targets) -> [B]
    """

    def __init__(self, task: ComponentTask, output: Output) -> None:
        self.task, self.output = task, output
        self.network = task.plain_model()  # not folded: hooks see every activation

    def run(self, masks: torch.Tensor, batch: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch and differentiate each output by its own mask.

        Parameters
        ----------
        masks : float32 [B, N]
            1 = kept, 0 = ablated.
        batch : Examples

        Returns
        -------
        outputs [B], gradients [B, N] : float32

        Raises
        ------
        ComponentError
            If the output cannot be differentiated, or its gradients are too large for 32 bits.
        """
        leaf = masks.detach().requires_grad_()
        # bf16 has the range that gradients need, whichever half precision the rows are in.
        precision = computing_in("none" if self.task.autocast == "none" else "bf16", masks.device)
        with torch.enable_grad(), _frozen(self.network), precision, _differentiable():
            outputs = self.outputs(leaf, batch)
            if not outputs.requires_grad:
                raise ComponentError(
                    "the output cannot be differentiated by the components (does it count or "
                    "compare, or does the model run without gradients?), so gradient passes do "
                    "not apply to it"
                )
            (slopes,) = torch.autograd.grad(outputs.float().sum(), leaf)
            if not torch.isfinite(slopes.square()).all():
                raise ComponentError(
                    "gradients of the output are not finite, or their squares are not in 32 bits "
                    "(scale the output), so gradient passes do not apply to it"
                )
        return outputs.detach().float(), slopes

    def forward(self, masks: torch.Tensor, batch: Examples) -> torch.Tensor:
        """Return the outputs [B] of a batch under masks [B, N], float32."""
        with torch.no_grad(), computing_in(self.task.autocast, masks.device):
            return self.outputs(masks, batch).float()

    @abstractmethod
    def outputs(self, masks: torch.Tensor, batch: Examples) -> torch.Tensor:
        """Return the outputs [B] under masks [B, N], which are differentiated."""

    def measured(self, network: nn.Module, batch: Examples) -> torch.Tensor:
        """Return the outputs [B] of a network."""
        return self.output(self.task.predict(network, batch.inputs), batch.targets)


class ByActivations(Scaling):
    """Scales the activations of all examples of a batch at once, by hooks."""

    def __init__(self, task: ComponentTask, output: Output) -> None:
        super().__init__(task, output)
        components = task.component_set
        self._sites = sites_of(self.network, components)
        context = Context(
            self.network,
            components,
            batches=lambda: (batch for _, batch in task.batches(FEW)),
            run=lambda batch: task.predict(self.network, batch.inputs),
        )
        self._axes = example_axes(context, self._sites, "scaled example by example")
        self._layers = [_layers(site.channels, len(components)) for site in self._sites]
        self._hooks = Hooks(self.network, self._sites, self._scaled)
        self._masks = torch.empty(0)

    def outputs(self, masks: torch.Tensor, batch: Examples) -> torch.Tensor:
        """Run the batch with every activation scaled."""
        self._masks = torch.cat([masks, masks.new_ones(len(masks), 1)], 1)
        with self._hooks:
            return self.measured(self.network, batch)

    def _scaled(self, index: int, activation: torch.Tensor) -> torch.Tensor:
        factor = self._masks[:, self._layers[index][0].to(self._masks.device)]
        for further in self._layers[index][1:]:
            factor = factor * self._masks[:, further.to(self._masks.device)]
        site = self._sites[index]
        wide = _over(factor, activation, self._axes[index], site.channel).to(activation.dtype)
        rest = self.task.ablation.replaced(site, index, activation)
        return rest + wide * (activation - rest)


class ByWeights(Scaling):
    """Scales weights, one example at a time."""

    def __init__(self, task: ComponentTask, output: Output, factor: float) -> None:
        super().__init__(task, output)
        self._rest, self._network = factor, unwrapped(self.network)
        channels = task.component_set.channels(self._network)
        self._parts = [(x, _layers(x, len(task.component_set))) for x in channels]

    def outputs(self, masks: torch.Tensor, batch: Examples) -> torch.Tensor:
        """Run every example with the weights of its own mask."""
        each = [self._one(mask, batch.take(slice(at, at + 1))) for at, mask in enumerate(masks)]
        return torch.cat(each)

    def _one(self, mask: torch.Tensor, example: Examples) -> torch.Tensor:
        mask = torch.cat([mask, mask.new_ones(1)])
        weights: dict[str, torch.Tensor] = {}
        for channels, layers in self._parts:
            path = channels.path
            before = weights.get(path, self._network.get_parameter(path))
            factor = before.new_ones(())
            for layer in layers:
                factor = factor * mask[layer.to(mask.device)].to(before.dtype)
            scale = self._rest + (1 - self._rest) * channels.entries(factor, before.shape)
            weights[path] = before * scale
        with _replaced(self._network, weights):
            return self.measured(self.network, example)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Say that a model which fails where gradients are wanted does without gradient passes."""
    try:
        yield
    except (CoarlibError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an operation without a derivative, or the model's own code
        raise ComponentError(
            f"the model cannot be differentiated ({first_line(error)}), so gradient passes do not "
            "apply to it"
        ) from error


@contextmanager
def _replaced(network: nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let a network have other tensors in place of some parameters, wherever it shares them."""
    new = {id(network.get_parameter(path)): tensor for path, tensor in weights.items()}
    taken = []
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if id(parameter) in new:
                taken.append((module, name, parameter))
                del module._parameters[name]
                module.__dict__[name] = new[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in taken:
            del module.__dict__[name]
            module._parameters[name] = parameter


def scaling_of(task: ComponentTask, output: Output) -> Scaling:
    """Return what scales the components of a prepared task.

    Raises
    ------
    ComponentError
        If its way of ablating is no scaling.
    """
    ablation = task.ablation
    if type(ablation).partners is not Ablation.partners:
        raise ComponentError(
            f"gradient passes scale what a component sends on, but {task.ablate} puts another "
            "example's in its place; take zero_weights, zero_activation or mean"
        )
    try:
        return ByActivations(task, output)
    except ComponentError:
        if not isinstance(ablation, WeightAblation):
            raise
        return ByWeights(task, output, ablation.factor)


def _layers(channels: Channels, components: int) -> list[torch.Tensor]:
    """For each channel the components that it belongs to, int64 [C] each; ``components`` = none.

    A channel of several components is scaled by the product of their masks.
    """
    found: list[torch.Tensor] = []
    seen = torch.zeros(channels.count, dtype=torch.long)
    for component, channel in zip(
        channels.component.tolist(), channels.channel.tolist(), strict=True
    ):
        if seen[channel] == len(found):
            found.append(torch.full((channels.count,), components))
        found[int(seen[channel])][channel] = component
        seen[channel] += 1
    return found


def _over(factor: torch.Tensor, activation: torch.Tensor, axis: int, channel: int) -> torch.Tensor:
    """Bring factors [B, C] to the shape of an activation, whose ``axis`` holds B · r entries."""
    channel %= activation.ndim
    shape = [1] * activation.ndim
    shape[axis], shape[channel] = activation.shape[axis], activation.shape[channel]
    wide = factor.repeat_interleave(activation.shape[axis] // len(factor), 0)
    return (wide if axis < channel else wide.T).reshape(shape)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Differentiate by no parameter meanwhile: that saves a third of the backward pass."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)

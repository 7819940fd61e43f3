"""Models of one architecture whose parameters are stacked, trained by the same steps at once.

One step is one computation of all models: one wide model where the architecture can be traced, else
torch.func. Any elementwise optimizer of torch works on the stack as it would on each model. The
result equals training the models one by one up to the rounding of batched arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils._pytree import tree_map

from coarlib.cuda_graphs import CudaGraphs
from coarlib.retraining.convolutions import are_ready
from coarlib.retraining.layers import WAYS
from coarlib.retraining.replay import WARM_CALLS, Replayed
from coarlib.retraining.trainer import Trainer, cross_entropy
from coarlib.retraining.wide import WideModel, wide_models

__all__ = ["TORCH_FUNC", "Stack", "ways_of"]

TORCH_FUNC = "torch.func"
_ORDER = {"cpu": ("batch_last", "channels_last", "grouped", "products")}
_STEPS_AHEAD = 256  # whose examples go to the device at once
Gradients = Sequence[torch.Tensor | None]
State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
Losses = Callable[[State, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ways_of(trainer: Trainer, model: torch.nn.Module, device: torch.device) -> dict[str, Losses]:
    """Return how a stack of models like ``model`` can be computed, the likeliest best first.

    Returns
    -------
    dict of callables (state, inputs [K, b, …], targets [K, b, …], weights [K, b]) -> losses [K]
    """
    wide = wide_models(model)
    images = any(one.has_images for one in wide.values())
    compiled = device.type == "cpu" and images and are_ready()
    order = _ORDER.get(device.type, ("grouped", "channels_last", "products"))
    found = {
        name: _loss_of_wide(trainer, wide[name])
        for name in order
        if name in wide
        and (images or name == "grouped")
        and (compiled or not WAYS[name].batch_last)
    }
    return found | {TORCH_FUNC: _loss_of_each(trainer, copy.deepcopy(model))}


class Stack:
    """K models in training.

    Parameters
    ----------
    trainer : Trainer
    subsets : sequence of K int64 arrays
        Of as many steps each.
    seeds : sequence of K ints
    device : torch.device
    way : str, optional
        One of ``ways``; may be changed between steps.
    replayed : bool
        On a CUDA device, repeat recorded steps.

    Attributes
    ----------
    ways : list of str
        How steps can be computed.
    """

    def __init__(  # noqa: PLR0917 - what a stack is of, and how it computes
        self,
        trainer: Trainer,
        subsets: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        device: torch.device,
        way: str | None = None,
        replayed: bool = True,
    ) -> None:
        self.trainer, self.subsets, self.seeds, self.device = trainer, subsets, seeds, device
        self.models = [made.train() for made in trainer.new_models(seeds, device)]
        self.parameters = _stacked([dict(one.named_parameters()) for one in self.models], device)
        self.buffers = _stacked([dict(one.named_buffers()) for one in self.models], device)
        steps = trainer.num_steps(len(subsets[0]))
        self._optimizer, self._schedule = trainer.make_optimizer(
            list(self.parameters.values()), steps
        )
        self._losses = ways_of(trainer, self.models[0], device)
        self.ways = list(self._losses)
        self._recorder = CudaGraphs() if replayed and device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.way = way or self.ways[0]

    @property
    def warm_steps(self) -> int:
        """Steps after a change of way that take longer than later ones."""
        return 1 if self._recorder is None else WARM_CALLS + 1

    @property
    def way(self) -> str:
        """How steps are computed."""
        return self._way

    @way.setter
    def way(self, way: str) -> None:
        self._way, losses = way, self._losses[way]
        self._gradients = Replayed(
            lambda *batch: self._gradients_of(losses, *batch), self._recorder
        )

    def steps(self) -> Iterator[None]:
        """Train, yielding after every step."""
        inputs, targets = self.trainer.placed(self.device)
        batches = zip(
            *(
                self.trainer.batches(subset, seed)
                for subset, seed in zip(self.subsets, self.seeds, strict=True)
            ),
            strict=True,
        )
        dtype = next(iter(self.parameters.values())).dtype
        step = 0
        while orders := list(islice(batches, _STEPS_AHEAD)):
            for lengths, rows, weight in _on_device(orders, self.device, dtype):
                with self._working():
                    entering = inputs.index_select(0, rows.flatten()).unflatten(0, rows.shape)
                    batch = self._augmented(entering, step, lengths)
                    self._step(self._gradients(batch, targets[rows], weight))
                step += 1
                yield None

    def _working(self) -> AbstractContextManager[Any]:
        """A stream of its own, as recordings need it; it is always waited for."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self._stream)

    def unstacked(self) -> list[torch.nn.Module]:
        """Return the models with their states, in evaluation mode, on the device."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        for place, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.data = self.parameters[name].detach()[place].clone()
            for name, buffer in model.named_buffers():
                buffer.data = self.buffers[name][place].clone()
            model.eval()
        return self.models

    def _gradients_of(self, losses: Losses, *batch: torch.Tensor) -> Gradients:
        """Gradients of all parameters, clipped; running statistics are updated."""
        wanted = [part for part in self.parameters.values() if part.requires_grad]
        with self.trainer.products():
            with self.trainer.forward(self.device):
                loss = losses((self.parameters, self.buffers), *batch).sum()
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
        gradients = [part if part is None else part.contiguous() for part in found]
        if self.trainer.clip_norm is not None:
            self._clip([part for part in gradients if part is not None], self.trainer.clip_norm)
        return gradients

    def _step(self, gradients: Gradients) -> None:
        wanted = [part for part in self.parameters.values() if part.requires_grad]
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()

    def _augmented(self, inputs: torch.Tensor, step: int, lengths: list[int]) -> torch.Tensor:
        """Augment each model's own batch as it would be alone; what fills it up stays as it is."""
        if self.trainer.augment is None:
            return inputs
        found = []
        for part, seed, length in zip(inputs, self.seeds, lengths, strict=True):
            changed = self.trainer.augmented(part[:length], seed, step)
            filling = changed[:1].expand(len(part) - length, *changed.shape[1:])
            found.append(torch.cat([changed, filling]))
        return torch.stack(found)

    def _clip(self, gradients: list[torch.Tensor], largest: float) -> None:
        """Scale each model's gradient as ``torch.nn.utils.clip_grad_norm_`` does."""
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _stacked(
    states: Sequence[dict[str, torch.Tensor]], device: torch.device
) -> dict[str, torch.Tensor]:
    """Stack what models of one architecture have under the same name, [K, …] each."""
    found = {}
    for name, first in states[0].items():
        whole = torch.stack([state[name].detach() for state in states]).to(device)
        found[name] = whole.requires_grad_(first.requires_grad)
    return found


def _on_device(
    orders: Sequence[Sequence[NDArray[np.int64]]], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Lengths, examples [K, b] and weights [K, b] of steps, taken to the device all at once."""
    padded = [_padded(order) for order in orders]
    sizes = [batch.size for batch, _ in padded]
    rows, weights = (
        torch.from_numpy(np.concatenate([part.ravel() for part in parts])).to(device, kind)
        for parts, kind in zip(zip(*padded, strict=True), (torch.int64, dtype), strict=True)
    )
    for order, row, weight in zip(orders, rows.split(sizes), weights.split(sizes), strict=True):
        shape = len(order), -1
        yield [len(part) for part in order], row.view(shape), weight.view(shape)


def _padded(
    orders: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One batch [K, b] of all models, and the weight of each slot in its model's mean loss.

    A model whose batch is shorter than the longest fills up with its own examples at weight 0.
    """
    lengths = np.array([len(order) for order in orders])[:, None]
    longest = int(lengths.max())
    batch = np.stack([o if len(o) == longest else np.resize(o, longest) for o in orders])
    return batch, (np.arange(longest) < lengths) / lengths


def _loss_of_wide(trainer: Trainer, wide: WideModel) -> Losses:
    """What comes of one call of the loss with the examples of all models."""

    def of_all(
        state: State, batch: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        outputs = wide(*state, batch)
        if trainer.loss is cross_entropy and _are_logits(outputs, wanted):
            # Vectors run over examples, which a softmax over the last axis has no use for.
            losses = functional.cross_entropy(outputs.mT, wanted, reduction="none")
        else:
            outputs = tree_map(lambda part: part.flatten(0, 1), outputs)
            losses = trainer.losses(outputs, wanted.flatten(0, 1))
        return (losses.view(weight.shape) * weight).sum(1)

    return of_all


def _are_logits(outputs: Any, wanted: torch.Tensor) -> bool:
    """Whether they are [K, b, classes] for classes [K, b]."""
    return isinstance(outputs, torch.Tensor) and outputs.ndim == 3 and wanted.ndim == 2


def _loss_of_each(trainer: Trainer, skeleton: torch.nn.Module) -> Losses:
    """What torch.func makes of one model's loss.

    The skeleton is its own, as functional_call does not put back a module with two names.
    """

    def of_one(
        state: State, batch: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        outputs = functional_call(skeleton, state, (batch,))
        return (trainer.losses(outputs, wanted) * weight).sum()

    return vmap(of_one)

"""Models of one architecture whose parameters are stacked, trained by the same steps at once.

One step is one batched computation (torch.func, or one wide model where the layers allow it), and
any elementwise optimizer of torch works on the stack as it would on each model. The result equals
training the models one by one up to the rounding of batched arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, stack_module_state, vmap

from coarlib.retraining.trainer import Trainer
from coarlib.retraining.wide import wide_forward

__all__ = ["Stack"]


class Stack:
    """K models in training.

    Parameters
    ----------
    trainer : Trainer
    subsets : sequence of K int64 arrays
        Of as many steps each.
    seeds : sequence of K ints
    device : torch.device
    """

    def __init__(
        self,
        trainer: Trainer,
        subsets: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.trainer, self.subsets, self.seeds, self.device = trainer, subsets, seeds, device
        self.models = [trainer.new_model(seed).to(device).train() for seed in seeds]
        self.parameters, self.buffers = stack_module_state(self.models)
        steps = trainer.num_steps(len(subsets[0]))
        self._optimizer, self._schedule = trainer.make_optimizer(
            list(self.parameters.values()), steps
        )
        self._inputs, self._targets = trainer.inputs.to(device), trainer.targets.to(device)
        # A copy, as functional_call does not put back the state of a module with two names.
        self._losses = _stacked_loss(trainer, copy.deepcopy(self.models[0]))

    def steps(self) -> Iterator[None]:
        """Train, yielding after every step."""
        dtype = next(iter(self.parameters.values())).dtype
        batches = [
            self.trainer.batches(subset, seed)
            for subset, seed in zip(self.subsets, self.seeds, strict=True)
        ]
        for step, orders in enumerate(zip(*batches, strict=True)):
            batch, weight = _padded(orders)
            rows = torch.from_numpy(batch).to(self.device)
            inputs = self._augmented(self._inputs[rows], step, [len(order) for order in orders])
            self._optimizer.zero_grad()
            self._losses(
                (self.parameters, self.buffers),
                inputs,
                self._targets[rows],
                torch.from_numpy(weight).to(dtype).to(self.device),
            ).sum().backward()
            if self.trainer.clip_norm is not None:
                self._clip(self.trainer.clip_norm)
            self._optimizer.step()
            self._schedule.step()
            yield

    def unstacked(self) -> list[torch.nn.Module]:
        """Return the models with their states, in evaluation mode."""
        with torch.no_grad():
            for place, model in enumerate(self.models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.parameters[name][place])
                for name, buffer in model.named_buffers():
                    buffer.copy_(self.buffers[name][place])
                model.eval()
        return self.models

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

    def _clip(self, largest: float) -> None:
        """Scale each model's gradient as ``torch.nn.utils.clip_grad_norm_`` does."""
        gradients = [part.grad for part in self.parameters.values() if part.grad is not None]
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _padded(
    orders: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One batch [K, b] of all models, and the weight of each slot in its model's mean loss.

    A model whose batch is shorter than the longest fills up with its own examples at weight 0.
    """
    lengths = np.array([len(order) for order in orders])[:, None]
    longest = int(lengths.max())
    batch = np.stack([np.resize(order, longest) for order in orders])
    return batch, (np.arange(longest) < lengths) / lengths


def _stacked_loss(trainer: Trainer, skeleton: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """Loss [K] of stacked states on batches [K, b, …] with weights [K, b]."""
    wide = wide_forward(skeleton)
    if wide is not None:
        of_outputs = vmap(lambda outputs, wanted, w: (trainer.losses(outputs, wanted) * w).sum())

        def wide_loss(
            state: tuple[dict[str, Any], dict[str, Any]], batch: torch.Tensor, *rest: torch.Tensor
        ) -> torch.Tensor:
            return torch.as_tensor(of_outputs(wide(*state, batch), *rest))

        return wide_loss

    def weighted_loss(
        state: tuple[dict[str, Any], dict[str, Any]],
        batch: torch.Tensor,
        wanted: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        outputs = functional_call(skeleton, state, (batch,))
        return (trainer.losses(outputs, wanted) * weight).sum()

    return vmap(weighted_loss)

"""A training loop whose result is a function of (subset, seed), alone or among others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from coarlib.errors import TaskError

__all__ = ["Loss", "Schedule", "Trainer", "batch_order", "build_model", "cross_entropy", "run_seed"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Schedule = Literal["constant", "cosine", "linear"]


def run_seed(seed: int, index: int, run: int) -> int:
    """Seed of run ``run`` of row ``index``: 63 bits, a pure function of its arguments."""
    state = np.random.SeedSequence([seed, index, run]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each example, [B, C] and [B] -> [B]."""
    return functional.cross_entropy(outputs, targets, reduction="none")


@dataclass(frozen=True)
class Trainer:
    """Trains a model on any subset of a data set held in memory.

    Calling :meth:`train` twice, or through :func:`coarlib.retraining.vectorised.train_many`, gives
    the same model: initialisation and order of examples depend on the seed only.

    Parameters
    ----------
    model : callable () -> nn.Module
        Makes a fresh model; its initialisation is seeded.
    inputs, targets : tensors [N, …]
    epochs, batch_size : int
    optimizer : type of torch.optim.Optimizer
    options : mapping
        The optimizer's arguments (``lr``, ``momentum``, ``weight_decay`` …).
    schedule : "constant", "cosine" or "linear"
        Factor of the learning rate, stepped every batch, from 1 to 0.
    loss : callable (outputs [B, …], targets [B, …]) -> [B]
        The loss of each example.
    drop_last : bool
        Leave out an epoch's last batch if it is short.
    """

    model: Callable[[], torch.nn.Module]
    inputs: torch.Tensor
    targets: torch.Tensor
    epochs: int
    batch_size: int = 64
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1, "momentum": 0.9})
    schedule: Schedule = "constant"
    loss: Loss = cross_entropy
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise TaskError(
                f"unknown schedule {self.schedule!r}; there are {', '.join(get_args(Schedule))}"
            )
        if len(self.inputs) != len(self.targets):
            raise TaskError(f"{len(self.inputs)} inputs but {len(self.targets)} targets")
        if self.epochs < 1 or self.batch_size < 1:
            raise TaskError("epochs and batch_size must be at least 1")

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.inputs)

    def num_steps(self, size: int) -> int:
        """How many optimizer steps a subset of ``size`` examples takes.

        Raises
        ------
        TaskError
            If that is none.
        """
        batches = size // self.batch_size if self.drop_last else -(-size // self.batch_size)
        if not batches:
            raise TaskError(
                f"a subset of {size} examples has no batch of {self.batch_size} to train on"
            )
        return self.epochs * batches

    def make_optimizer(
        self, parameters: list[torch.Tensor], steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Build the optimizer and its schedule over ``steps`` steps."""
        optimizer = self.optimizer(parameters, **self.options)
        factor = {
            "constant": lambda step: 1.0,
            "cosine": lambda step: (1 + math.cos(math.pi * step / steps)) / 2,
            "linear": lambda step: 1 - step / steps,
        }[self.schedule]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def train(
        self, subset: NDArray[np.int64], seed: int, device: torch.device | str = "cpu"
    ) -> torch.nn.Module:
        """Train one model on the examples ``subset``; returned in evaluation mode."""
        model = build_model(self.model, seed).to(device).train()
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        steps = self.num_steps(len(subset))
        optimizer, schedule = self.make_optimizer(list(model.parameters()), steps)
        for epoch in range(self.epochs):
            order = torch.from_numpy(batch_order(subset, seed, epoch)).to(device)
            for batch in order.split(self.batch_size):
                if self.drop_last and len(batch) < self.batch_size:
                    break
                optimizer.zero_grad()
                self.loss(model(inputs[batch]), targets[batch]).mean().backward()
                optimizer.step()
                schedule.step()
        return model.eval()


def batch_order(subset: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of a subset's examples in an epoch; does not depend on how the subset was sorted."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(np.sort(np.asarray(subset, dtype=np.int64)))


def build_model(factory: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """Call the factory with torch's generator seeded, and put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():  # torch.manual_seed costs a millisecond where it is not
            torch.cuda.manual_seed_all(seed)
        return factory()

"""A training run as data, and the loop that trains it with a history and goes on after a stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.history.reading import History
from coarlib.history.recorder import record
from coarlib.history.resuming import restore
from coarlib.history.settings import SETTINGS_FILE
from coarlib.history.training import TrainingLoss
from coarlib.progress import Progress
from coarlib.tracking import is_tracked

Pairs = tuple[torch.Tensor, torch.Tensor]


class HistorySetup(ABC):
    """What a set-up for histories says: model, data, optimizer, loss, and which batch when.

    Attributes
    ----------
    num_steps, batch_size : int
    seed : int
        Of the batches; models and data seed themselves.
    """

    num_steps: int
    batch_size: int
    seed: int = 0

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the untrained model; the same every time."""

    @abstractmethod
    def train_samples(self) -> Pairs:
        """Return training inputs and targets."""

    @abstractmethod
    def test_samples(self) -> Pairs:
        """Return held-out inputs and targets."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer."""

    @abstractmethod
    def loss(self) -> TrainingLoss:
        """Return the objective."""

    def learning_rate(self, step: int) -> float | None:
        """Return the learning rate of an update; None leaves the optimizer's own."""
        return None

    def batch(self, step: int, num_samples: int) -> NDArray[np.int64]:
        """Return the sample numbers of an update: epochs in random order, by (seed, epoch)."""
        per_epoch = -(-num_samples // self.batch_size)
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(num_samples)
        return order[place * self.batch_size : (place + 1) * self.batch_size].astype(np.int64)


def train_with_history(
    setup: HistorySetup,
    path: str | Path,
    device: torch.device | str = "cpu",
    stop_at: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> nn.Module:
    """Train a set-up, recording; a run that stopped goes on where its history ends.

    Parameters
    ----------
    setup : HistorySetup
    path : str or Path
        Of the history.
    device : torch.device or str
    stop_at : int, optional
        Stop before this update.
    quiet : bool
    **options
        Of :func:`coarlib.history.record`: ``every``, ``window``, ``track``, ``storage`` ….

    Returns
    -------
    nn.Module
        As trained so far.
    """
    model = setup.model().to(device)
    optimizer = setup.optimizer(model)
    options.setdefault("keep_momentum", True)
    if (Path(path) / SETTINGS_FILE).exists() and History(path).num_updates:
        restore(History(path), model, optimizer)
    train = setup.train_samples()
    inputs, targets = (tensor.to(device) for tensor in train)
    loss, last = setup.loss(), min(stop_at or setup.num_steps, setup.num_steps)
    parameters = dict(model.named_parameters())
    with (
        record(
            model,
            optimizer,
            path,
            samples=train,
            loss=loss,
            num_steps=setup.num_steps,
            max_batch=min(setup.batch_size, len(inputs)),
            quiet=quiet,
            **options,
        ) as history,
        Progress(last - history.step, "training", "step", quiet) as progress,
    ):
        for step in range(history.step, last):
            numbers = setup.batch(step, len(inputs))
            rate = setup.learning_rate(step)
            for group in optimizer.param_groups if rate is not None else ():
                group["lr"] = rate
            chosen = torch.from_numpy(numbers).to(device)
            optimizer.zero_grad()
            value = loss.of_batch(model(inputs[chosen]), targets[chosen], parameters)
            value.backward()
            if is_tracked():
                progress.note(loss=float(value.detach()))
            history.batch(numbers)
            optimizer.step()
            progress.advance()
    return model

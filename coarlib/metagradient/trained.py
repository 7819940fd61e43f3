"""Training a :class:`~coarlib.retraining.Trainer`'s model so that it can be differentiated."""

from __future__ import annotations

from contextlib import ExitStack
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.history import RecordedRun, Samples, TrainingLoss, open_run
from coarlib.history.clipping import watch_clipping
from coarlib.history.memory import MemoryHistory
from coarlib.history.optimizers import OptimizerKind
from coarlib.history.parameters import ParameterTable
from coarlib.history.reading import StepRecord
from coarlib.history.settings import Settings
from coarlib.history.training import random_or_coupled, refuse_inexact
from coarlib.retraining import Trainer
from coarlib.retraining.randomness import seeded

STATES_BYTES = 256 * 2**20
"""All states of a run are kept if they take no more; else each ⌈√T⌉-th."""


def recorded_run(
    trainer: Trainer,
    subset: NDArray[np.int64],
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> RecordedRun:
    """Train as ``trainer.train(subset, seed)`` does, keeping the history in memory.

    Parameters
    ----------
    trainer : Trainer
    subset : int64 [k]
    seed : int
    device : torch.device or str
    dtype : torch.dtype, optional
        Of the computations; the model's own by default.

    Raises
    ------
    HistoryError
        If training is random or couples the samples of a batch (dropout, batch norm,
        augmentation), or the optimizer is not SGD, Adam or AdamW.
    """
    if trainer.augment is not None:
        raise HistoryError(
            "metagradients need samples that stay as they are; train without augment"
        )
    model = trainer.new_model(seed).to(device).train()
    refuse_inexact(random_or_coupled(model))
    parameters: list[torch.Tensor] = list(model.parameters())
    steps = trainer.num_steps(len(subset))
    optimizer, schedule = trainer.make_optimizer(parameters, steps)
    kind, table = OptimizerKind.of(optimizer), ParameterTable.of(model, optimizer)
    named = dict(model.named_parameters())
    trained: list[torch.Tensor] = [named[name] for name in table.names]
    own = str(trained[0].dtype).removeprefix("torch.")
    bytes_of_all = steps * (3 if kind.adaptive else 2) * table.total * trained[0].element_size()
    settings = Settings(
        kind=kind,
        table=table,
        tracked=table.names,
        start=0,
        stop=steps,
        num_steps=steps,
        every=1 if bytes_of_all <= STATES_BYTES else isqrt(steps - 1) + 1,
        dtype=own,
        storage=own,
        keep_momentum=True,
        max_batch=trainer.batch_size,
        weighted=False,
        num_samples=trainer.num_examples,
        data_digest="",
        frozen_digest="",
    )
    loss = TrainingLoss(
        lambda outputs, targets: trainer.losses(outputs, targets).mean(),
        autocast=torch.bfloat16 if trainer.autocast == "bf16" else None,
    )
    history = MemoryHistory(settings, optimizer, trained)
    factors = [1.0] * len(trained)
    counts = np.zeros(len(trained), np.int32)
    inputs, targets = trainer.inputs.to(device), trainer.targets.to(device)
    with ExitStack() as stack:
        stack.enter_context(seeded(seed, device))
        stack.enter_context(trainer.products())
        stack.enter_context(watch_clipping(trained, factors))
        for step, numbers in enumerate(trainer.batches(subset, seed)):
            chosen = torch.from_numpy(numbers).to(device)
            optimizer.zero_grad()
            with trainer.forward(device):
                objective = loss.function(model(inputs[chosen]), targets[chosen])
            objective.backward()
            factors[:] = [1.0] * len(factors)
            if trainer.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
            active = np.array([p.grad is not None for p in trained])
            history.before_step(_record(step, numbers, optimizer, kind, counts, active, factors))
            counts = counts + active.astype(np.int32)
            optimizer.step()
            schedule.step()
    samples = Samples((trainer.inputs, trainer.targets))
    return open_run(history.finish(), model, loss, samples, dtype=dtype, replay_tolerance=1e-5)


def _record(step: int, numbers: Any, optimizer: Any, kind: OptimizerKind, *rest: Any) -> StepRecord:
    counts, active, factors = rest
    return StepRecord(
        step,
        numbers,
        np.full(len(numbers), 1 / len(numbers)),
        np.array(kind.hyperparameters(optimizer)),
        np.where(active, counts, -1).astype(np.int32),
        np.array(factors),
        0,
    )

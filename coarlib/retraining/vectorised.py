"""Training many models on their own subsets: at once where that is equal, fits and is no slower."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.devices import free_bytes, resolve_device
from coarlib.errors import TaskError, whole_number
from coarlib.retraining.data import as_subset
from coarlib.retraining.probe import (
    StackProbe,
    probe_stack,
    seconds,
    seconds_alone,
)
from coarlib.retraining.randomness import checked_seed
from coarlib.retraining.stack import Stack
from coarlib.retraining.trainer import Trainer

__all__ = ["SequentialTrainingWarning", "models_at_once", "probed", "train_many", "train_stack"]

_SHARE_OF_MEMORY = 0.25
_MOST_AT_ONCE = 64
_TIMED_STEPS = 3
_FEWEST_STEPS = 8  # of a training run; to time fewer costs as much as it can save


class SequentialTrainingWarning(UserWarning):
    """Models are trained one by one, for the reason given."""


class _TooSlowError(Exception):
    """A stack takes longer than its models take one by one."""


def train_many(
    trainer: Trainer,
    subsets: Sequence[Any],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    at_once: int | None = None,
) -> list[torch.nn.Module]:
    """Train one model a subset, many at once where that gives the same models no later.

    Parameters
    ----------
    trainer : Trainer
    subsets : sequence of int64 arrays, or of masks bool [N]
        The examples of each model; sizes may differ.
    seeds : sequence of int
        Seed of each model.
    device : torch.device or str
    at_once : int, optional
        Most models in one stack; by default, what fits a quarter of the free memory, at most 64.

    Returns
    -------
    list of nn.Module
        In evaluation mode, in the order given, on ``device``; the same as ``trainer.train`` gives
        up to rounding. Trained one by one, with a :class:`SequentialTrainingWarning`, where a
        stack would give other models or take longer.

    Raises
    ------
    TaskError
        If numbers of subsets and seeds differ, a subset cannot be trained on, or training is no
        function of (subset, seed).
    """
    device = resolve_device(str(device))
    if len(subsets) != len(seeds):
        raise TaskError(f"{len(subsets)} subsets but {len(seeds)} seeds")
    if at_once is not None and whole_number(at_once, "at_once") < 1:
        raise TaskError(f"at_once must be at least 1, not {at_once}")
    seeds = [checked_seed(seed) for seed in seeds]
    examples = [as_subset(subset, trainer.num_examples) for subset in subsets]
    for subset in examples:
        trainer.check_size(len(subset))
    trainer.check_pure(device)
    found: dict[int, torch.nn.Module] = {}
    for group in _groups(trainer, examples, device, at_once):
        jobs = [examples[i] for i in group], [seeds[i] for i in group]
        found |= zip(group, _train_group(trainer, *jobs, device), strict=True)
    return [found[i] for i in range(len(examples))]


def _groups(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    device: torch.device,
    at_once: int | None,
) -> list[list[int]]:
    """Share models out to stacks: of as many steps and, where none can be filled up, batches."""
    if len(subsets) == 1:
        return [[0]]
    most = models_at_once(trainer, device)
    most = min(most, at_once or most)
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    exact = probed(trainer, device).exact
    for place, subset in enumerate(subsets):
        last = len(subset) % trainer.batch_size if exact else 0
        alike[trainer.num_steps(len(subset)), last].append(place)
    return [
        places[start : start + most]
        for places in alike.values()
        for start in range(0, len(places), most)
    ]


def models_at_once(trainer: Trainer, device: torch.device) -> int:
    """How many models fit a quarter of the free memory of ``device``, from 1 to 64."""
    needed = max(1, probed(trainer, device).bytes_per_model)
    return int(max(1, min(_MOST_AT_ONCE, _SHARE_OF_MEMORY * free_bytes(device) // needed)))


def probed(trainer: Trainer, device: torch.device) -> StackProbe:
    """Return what a step of two models says, taken once for each trainer and device."""
    found = trainer.verdicts.get(device.type)
    if found is None:
        found = trainer.verdicts[device.type] = probe_stack(trainer, device)
    return found


def _train_group(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    device: torch.device,
) -> list[torch.nn.Module]:
    """Train models that may be a stack."""
    size = len(subsets).bit_length()  # what holds for a stack of 40 holds for one of 60
    if len(subsets) > 1:
        reason = probed(trainer, device).reason or trainer.verdicts.get((device.type, size))
        if not reason:
            try:
                return train_stack(trainer, subsets, seeds, device, timed=True)
            except _TooSlowError as error:
                reason = trainer.verdicts[device.type, size] = str(error)
        warnings.warn(
            f"models are trained one by one: {reason}", SequentialTrainingWarning, stacklevel=4
        )
    return [trainer.run(subset, seed, device) for subset, seed in zip(subsets, seeds, strict=True)]


def train_stack(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    device: torch.device,
    timed: bool = False,
) -> list[torch.nn.Module]:
    """Train models of as many steps each as a stack; ``timed`` gives up if that takes longer."""
    steps = trainer.num_steps(len(subsets[0]))
    key = device.type, len(subsets).bit_length()
    timed = timed and key not in trainer.verdicts and steps >= _FEWEST_STEPS
    alone = seconds_alone(trainer, device) * len(subsets) if timed else 0.0
    stack, clock = Stack(trainer, subsets, seeds, device), [seconds(device)]
    for _ in stack.steps():
        if timed and len(clock) <= _TIMED_STEPS:
            clock.append(seconds(device))
            if len(clock) > _TIMED_STEPS:
                _refuse_if_slower(float(np.diff(clock)[1:].min()), alone, len(subsets))
                trainer.verdicts[key] = ""
    return stack.unstacked()


def _refuse_if_slower(stacked: float, alone: float, models: int) -> None:
    if stacked > alone:
        ratio = stacked / max(alone, 1e-9)
        raise _TooSlowError(f"a step of {models} models in a stack takes {ratio:.2f} times as long")

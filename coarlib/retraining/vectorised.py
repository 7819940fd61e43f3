"""Training many models on their own subsets: at once where that is equal, fits and is no slower."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.devices import free_bytes, resolve_device
from coarlib.errors import TaskError, whole_number
from coarlib.retraining.convolutions import COMPILING, are_ready, compile_layers
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
_SPENT = "seconds"  # a trainer's verdict: how long its stacks have trained
_TIMED_STEPS = 2
_FEWEST_STEPS = 8  # of a training run for each way that is timed; a share of fewer saves nothing


class SequentialTrainingWarning(UserWarning):
    """Models are trained one by one, for the reason given."""


class _TooSlowError(Exception):
    """A stack takes longer than its models take one by one."""


@dataclass(frozen=True)
class Choice:
    """How a stack of some size is trained: the fastest way, or why it is none."""

    way: str = ""
    reason: str = ""


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
    if len(subsets) > 1:
        choice = trainer.verdicts.get(_key(subsets, device), Choice())
        reason = probed(trainer, device).reason or choice.reason
        if not reason:
            try:
                return train_stack(trainer, subsets, seeds, device, timed=True)
            except _TooSlowError as error:
                reason = str(error)
        warnings.warn(
            f"models are trained one by one: {reason}", SequentialTrainingWarning, stacklevel=4
        )
    return [trainer.run(subset, seed, device) for subset, seed in zip(subsets, seeds, strict=True)]


def _key(subsets: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[str, int]:
    """What a choice holds for: what holds for a stack of 40 holds for one of 60."""
    return device.type, len(subsets).bit_length()


def train_stack(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    device: torch.device,
    timed: bool = False,
) -> list[torch.nn.Module]:
    """Train models of as many steps each as a stack.

    ``timed`` takes the first steps in every way, keeps the fastest, and gives up if alone is
    faster.
    """
    key, started = _key(subsets, device), seconds(device)
    ways = _fitting(probed(trainer, device).ways, len(subsets), device)
    stack = Stack(trainer, subsets, seeds, device, ways[0])
    steps = stack.steps()
    if key in trainer.verdicts:
        stack.way = trainer.verdicts[key].way or ways[0]
    elif timed and trainer.num_steps(len(subsets[0])) >= _FEWEST_STEPS:
        alone = seconds_alone(trainer, device) * len(subsets)
        ways = ways[: trainer.num_steps(len(subsets[0])) // _FEWEST_STEPS]
        times = {way: _seconds_of_a_step(stack, steps, way) for way in ways}
        stack.way = min(times, key=times.__getitem__)
        trainer.verdicts[key] = _choice(stack.way, times[stack.way], alone, len(subsets))
        if trainer.verdicts[key].reason:
            raise _TooSlowError(trainer.verdicts[key].reason)
    for _ in steps:
        pass
    _spent(trainer, device, seconds(device) - started)
    return stack.unstacked()


def _spent(trainer: Trainer, device: torch.device, more: float) -> None:
    """Compile layers when training has taken long enough; then the ways are compared once more."""
    total = trainer.verdicts[_SPENT] = trainer.verdicts.get(_SPENT, 0.0) + more
    images = "channels_last" in probed(trainer, device).ways
    if device.type == "cpu" and images and total > COMPILING and not are_ready():
        compile_layers()
        trainer.verdicts.clear()


def _fitting(ways: Mapping[str, int], models: int, device: torch.device) -> list[str]:
    """Name the ways for which there is memory, or the one that needs least."""
    most = _SHARE_OF_MEMORY * free_bytes(device)
    return [way for way, needed in ways.items() if needed * models <= most] or [
        min(ways, key=ways.__getitem__)
    ]


def _seconds_of_a_step(stack: Stack, steps: Iterator[None], way: str) -> float:
    """Train a few steps in a way, the first of which prepare it."""
    stack.way = way
    for _ in range(stack.warm_steps):
        next(steps)
    clock = [seconds(stack.device)]
    for _ in range(_TIMED_STEPS):
        next(steps)
        clock.append(seconds(stack.device))
    return float(np.diff(clock).min())


def _choice(way: str, stacked: float, alone: float, models: int) -> Choice:
    if stacked <= alone:
        return Choice(way)
    ratio = stacked / max(alone, 1e-9)
    return Choice("", f"a step of {models} models in a stack takes {ratio:.2f} times as long")

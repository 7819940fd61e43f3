"""How the learning rate changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from coarlib.errors import TaskError, nearest

__all__ = ["Schedule", "check_schedule", "make_schedule"]

Schedule = (
    Literal["constant", "cosine", "linear"] | Callable[[torch.optim.Optimizer, int], LRScheduler]
)
_FACTORS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda _: 1.0,
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
        "linear": lambda done: 1 - done,
    }
)


def check_schedule(schedule: Schedule, warmup: int) -> None:
    """Raise TaskError if a schedule is unknown, or contradicts a warm-up."""
    if callable(schedule):
        if warmup:
            raise TaskError("put the warm-up into your own schedule, and leave warmup at 0")
    elif schedule not in _FACTORS:
        known = ", ".join(_FACTORS)
        raise TaskError(
            f"unknown schedule {schedule!r}; there are {known}, and functions (optimizer, steps) "
            f"-> LRScheduler{nearest(str(schedule), _FACTORS)}"
        )


def make_schedule(
    schedule: Schedule, optimizer: torch.optim.Optimizer, steps: int, warmup: int = 0
) -> LRScheduler:
    """Build the schedule of ``steps`` steps, the first ``warmup`` of which rise to 1.

    Raises
    ------
    TaskError
        If there are no steps after the warm-up, or a function returns no scheduler of steps.
    """
    if callable(schedule):
        found = schedule(optimizer, steps)
        if not isinstance(found, LRScheduler) or isinstance(found, ReduceLROnPlateau):
            raise TaskError(
                f"schedule(optimizer, steps) returned {type(found).__name__}, not a scheduler of "
                "torch that depends on the step only"
            )
        return found
    if warmup >= steps:
        raise TaskError(f"a warm-up of {warmup} steps is longer than the training of {steps}")
    factor = _FACTORS[schedule]

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return factor(min(1.0, (step - warmup) / (steps - warmup)))

    return LambdaLR(optimizer, at)

"""Is training a function of (subset, seed)? One step, twice, says so before a run of hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coarlib.errors import TaskError
from coarlib.retraining.randomness import seeded

__all__ = ["check_pure", "difference", "full_state"]

# On accelerators sums are taken in any order.
_OTHER_TOLERANCE = 1e-4


def check_pure(
    factory: Callable[[], Any], step: Callable[[], torch.nn.Module], device: torch.device
) -> None:
    """Train for a step twice.

    Parameters
    ----------
    factory : callable () -> nn.Module
        Makes the models.
    step : callable () -> nn.Module
        Makes a model and trains it for a step, with one seed.
    device : torch.device

    Raises
    ------
    TaskError
        Naming the parameter or buffer that differs, or what the step raised.
    """
    _check_fresh(factory)
    try:
        first, second = full_state(step()), full_state(step())
    except TaskError:
        raise
    except Exception as error:  # whatever a user's model, loss or optimizer raises
        reason = " ".join(str(error).split())[:300]
        raise TaskError(f"a step of training fails: {type(error).__name__}: {reason}") from error
    different = difference(first, second, 0.0 if device.type == "cpu" else _OTHER_TOLERANCE)
    if different is not None:
        raise TaskError(
            f"training is no function of (subset, seed): {different} differs between two equal "
            "calls; draw from torch's, NumPy's or Python's global generators, which are seeded, or "
            "seed your own in the model's constructor"
        )


def _check_fresh(factory: Callable[[], Any]) -> None:
    """Raise TaskError if two models that the factory makes share what training changes."""
    with seeded(0):
        models = [factory(), factory()]
    if not all(isinstance(model, torch.nn.Module) for model in models):
        raise TaskError(f"model() returned {type(models[0]).__name__}, not a torch.nn.Module")
    if models[0] is models[1]:
        raise TaskError(
            "model() returned the same model twice, already trained the second time; make a fresh "
            "one each time, for example by copy.deepcopy"
        )
    shared = {id(parameter) for parameter in models[0].parameters() if parameter.requires_grad}
    for name, parameter in models[1].named_parameters():
        if id(parameter) in shared:
            raise TaskError(
                f"the models that model() makes share their parameter {name}; make it anew each "
                "time, for example by copy.deepcopy"
            )


def full_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all that a model carries: parameters, buffers of any kind, and plain attributes.

    Attributes that are tensors, arrays or numbers count, since a forward pass can change them.
    """
    state = {name: part.detach() for name, part in model.named_parameters()}
    state |= {name: part.detach() for name, part in model.named_buffers()}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "training" or name.startswith("_torchdynamo"):  # torch.compile numbers
                continue
            if isinstance(value, torch.Tensor | np.ndarray | float | int):
                state[f"{prefix}.{name}".lstrip(".")] = _plain(value)
    return state


def _plain(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, RuntimeError, OverflowError):
        return torch.zeros(0)


def difference(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float
) -> str | None:
    """Name the first part of two states that differs by more than ``tolerance`` of its size."""
    for name, a in first.items():
        b = second.get(name)
        if b is None or a.shape != b.shape or a.dtype != b.dtype:
            return name
        gap = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf)
        gap[(a == b) | (a.isnan() & b.isnan())] = 0
        size = a.double().abs().nan_to_num(nan=0.0, posinf=0.0)
        if a.numel() and float(gap.max()) > tolerance * float(size.max()):
            return name
    return None

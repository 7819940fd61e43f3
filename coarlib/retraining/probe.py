"""May models be trained in a stack? Only if a step of it is equal, and no slower, and fits.

Before the first stack of a trainer, two models with batches of unequal length take one step alone
and together; gradients, updates, buffers of every kind and attributes are compared, and what the
step allocates is measured. How long steps take is measured while the first stack trains.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coarlib.errors import TaskError, first_line
from coarlib.retraining.purity import difference, full_state
from coarlib.retraining.randomness import random_state, seeded
from coarlib.retraining.stack import Stack, ways_of
from coarlib.retraining.trainer import Trainer

__all__ = ["Allocations", "StackProbe", "probe_stack", "seconds", "seconds_alone"]

# Optimizers that treat every parameter entry by itself, so that a stack behaves as its parts.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
)
# Rounding of batched arithmetic, relative to the largest entry; and below it, noise, which
# optimizers such as Adam turn into steps of full size.
_GRADIENTS, _NOISE = 1e-3, 1e-5
_STATES, _UPDATES = 1e-4, 1e-2
_TIMED_STEPS = 3


@dataclass(frozen=True)
class StackProbe:
    """What a step of two models says.

    Attributes
    ----------
    reason : str or None
        Why models of this trainer cannot be stacked.
    ways : mapping of str to int
        How such models can be computed together, and what one of them then allocates at its peak,
        in bytes; the likeliest best first. Empty if there is a reason.
    exact : bool
        Models look at the whole batch, as batch normalisation does, so that a short batch cannot
        be filled up: only those with batches of one size may be stacked.
    """

    reason: str | None
    ways: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False

    @property
    def bytes_per_model(self) -> int:
        """What one model of a stack allocates at least; 0 if there is a reason."""
        return min(self.ways.values(), default=0)


def probe_stack(trainer: Trainer, device: torch.device) -> StackProbe:
    """Compare a step of two models together and alone.

    Raises
    ------
    TaskError
        If a step fails alone too, or the loss is not one number an example.
    """
    if trainer.optimizer not in ELEMENTWISE:
        name = getattr(trainer.optimizer, "__name__", type(trainer.optimizer).__name__)
        return StackProbe(f"{name} does not treat parameters one entry at a time")
    probe = trainer.for_a_step()
    if _draws_random_numbers(probe, device):
        return StackProbe("the model draws random numbers, which a stack draws otherwise")
    try:
        copy.deepcopy(probe.new_model(0))
    except Exception as error:  # torch's older weight_norm keeps what has a gradient, for one
        return StackProbe(f"the model cannot be copied ({first_line(error)})")
    size = min(probe.batch_size, probe.num_examples)
    if size > 2 and not probe.drop_last:
        found = _compare(probe, device, (size, size - 1))
        if found.reason is None:
            return found
    return replace(_compare(probe, device, (size, size)), exact=not probe.drop_last)


def _compare(trainer: Trainer, device: torch.device, sizes: tuple[int, int]) -> StackProbe:
    """Take a step of two models on batches of two sizes, together in every way and alone."""
    most = trainer.num_examples
    subsets = [np.arange(sizes[0]), np.arange(most - sizes[1], most)]
    exact = replace(trainer, autocast="none")  # so that a difference is no rounding
    alone = [exact.run(subset, seed, device) for seed, subset in enumerate(subsets)]
    reasons, needed = [], {}
    ways = list(ways_of(trainer, trainer.new_model(0).train(), device))
    for way in reversed(ways):
        found = _compare_way(trainer, subsets, alone, device, way)
        if isinstance(found, int):
            needed[way] = found
            continue
        reasons.append(found)
        if sizes[0] != sizes[1]:
            break  # a batch cannot be filled up, whatever the way
    equal = {way: needed[way] for way in ways if way in needed}
    return StackProbe(None if equal else reasons[0], equal)


def _compare_way(
    trainer: Trainer,
    subsets: list[NDArray[np.int64]],
    alone: list[torch.nn.Module],
    device: torch.device,
    way: str,
) -> str | int:
    """Return the bytes of a model, or why a stack trains others."""
    try:
        with Allocations() as allocations:
            exact = replace(trainer, epochs=2, autocast="none")
            stack = Stack(exact, subsets, range(2), device, way)
            steps = stack.steps()
            next(steps)
        different = _different(stack, alone, [trainer.new_model(seed) for seed in range(2)])
        with allocations:  # optimizers keep more from the second step on
            next(steps)
        if trainer.autocast != "none":
            next(Stack(trainer, subsets, range(2), device, way).steps())
    except TaskError:
        raise
    except Exception as error:  # whatever a user's model raises when it is batched
        return f"torch.func cannot batch the model: {str(error).splitlines()[0]}"
    if different is not None:
        return f"in a stack {different} differs from that of a model trained alone"
    return max(1, allocations.most // 2)


def _draws_random_numbers(trainer: Trainer, device: torch.device) -> bool:
    size = min(trainer.batch_size, trainer.num_examples)
    with seeded(0, device):
        model = trainer.model().to(device).train()
        inputs, targets = trainer.inputs[:size].to(device), trainer.targets[:size].to(device)
        before = random_state(device)
        trainer.losses(model(inputs), targets).mean().backward()
        return random_state(device) != before


def _different(
    stack: Stack, alone: list[torch.nn.Module], fresh: list[torch.nn.Module]
) -> str | None:
    """Name what differs between a step of the stack and the same steps alone, if anything does."""
    for place, (together, one, new) in enumerate(zip(stack.unstacked(), alone, fresh, strict=True)):
        gradients = {
            name: None if stacked.grad is None else stacked.grad[place]
            for name, stacked in stack.parameters.items()
        }
        found = _different_step(gradients, together, one, new)
        states = [
            {key: part for key, part in full_state(model).items() if key not in gradients}
            for model in (together, one)
        ]
        found = found or difference(states[0], states[1], _STATES)
        found = found or difference(states[1], states[0], _STATES)
        if found is not None:
            return found
    return None


def _different_step(
    gradients: dict[str, torch.Tensor | None],
    together: torch.nn.Module,
    one: torch.nn.Module,
    new: torch.nn.Module,
) -> str | None:
    """Name the first parameter whose gradient or update differs by more than rounding."""
    sizes = [float(p.grad.abs().max()) for p in one.parameters() if p.grad is not None]
    noise = _NOISE * max(sizes, default=0.0)
    stacked, before = dict(together.named_parameters()), dict(new.named_parameters())
    for name, after in one.named_parameters():
        found, wanted = gradients[name], after.grad
        if found is None and wanted is None:
            continue
        if found is None or wanted is None:
            return f"the gradient of {name}"
        size = float(wanted.abs().max())
        if not float((found - wanted).abs().max()) <= _GRADIENTS * size + noise:
            return f"the gradient of {name}"
        clear = wanted.abs() > max(10 * noise, _GRADIENTS * size)
        change = (after - before[name].to(after.device)).detach()[clear]
        gap = (after - stacked[name]).detach()[clear]
        if len(gap) and not float(gap.abs().max()) <= _UPDATES * float(change.abs().max()):
            return f"the update of {name}"
    return None


class Allocations(TorchDispatchMode):
    """Follows what is allocated while it is active; ``most`` is the most at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._now, self.most = 0, 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and count the memory of what it returns."""
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, torch.Tensor):
                self._count(part.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self._now += size
        self.most = max(self.most, self._now)


def seconds_alone(trainer: Trainer, device: torch.device) -> float:
    """Time of a step of one model, the best of a few."""
    clock = [seconds(device)]
    size = min(trainer.batch_size, trainer.num_examples)
    probe = replace(trainer.for_a_step(), epochs=_TIMED_STEPS + 1)
    probe.run(np.arange(size), 0, device, lambda: clock.append(seconds(device)))
    return float(np.diff(clock)[1:].min())


def seconds(device: torch.device) -> float:
    """A clock: of this process's work where one thread does it, else of the wall."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()

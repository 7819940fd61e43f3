"""Training many models on their own subsets at once.

The parameters of K models are stacked, one step is one batched computation (torch.func, or one
wide model where the layers allow it), and any elementwise optimizer of torch works on the stack as
it would on each model. The result equals training the models one by one up to the rounding of
batched arithmetic.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, stack_module_state, vmap

from coarlib.errors import TaskError
from coarlib.retraining.trainer import Trainer, batch_order, build_model
from coarlib.retraining.wide import wide_forward

__all__ = ["SequentialTrainingWarning", "models_at_once", "reason_not_vectorisable", "train_many"]

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
_RANDOM_LAYERS = (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
_BATCH_NORM = torch.nn.modules.batchnorm._NormBase
_SHARE_OF_MEMORY = 0.25
_MOST_AT_ONCE = 64


class SequentialTrainingWarning(UserWarning):
    """Models are trained one by one, for the reason given."""


def train_many(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    at_once: int | None = None,
) -> list[torch.nn.Module]:
    """Train one model a subset, many at once where possible.

    Parameters
    ----------
    trainer : Trainer
    subsets : sequence of int64 arrays
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
        up to rounding. Trained one by one, with a :class:`SequentialTrainingWarning`, where the
        model or the optimizer cannot be stacked.

    Raises
    ------
    TaskError
        If numbers of subsets and seeds differ, or a subset has no batch to train on.
    """
    if len(subsets) != len(seeds):
        raise TaskError(f"{len(subsets)} subsets but {len(seeds)} seeds")
    reason = reason_not_vectorisable(trainer, [len(subset) for subset in subsets])
    if reason or len(subsets) == 1:
        if reason:
            warnings.warn(
                f"models are trained one by one: {reason}", SequentialTrainingWarning, stacklevel=2
            )
        return [
            trainer.train(subset, seed, device) for subset, seed in zip(subsets, seeds, strict=True)
        ]
    most = at_once or models_at_once(trainer, torch.device(device))
    by_steps: dict[int, list[int]] = defaultdict(list)
    for place, subset in enumerate(subsets):
        by_steps[trainer.num_steps(len(subset))].append(place)
    found: list[torch.nn.Module | None] = [None] * len(subsets)
    for steps, places in by_steps.items():
        for start in range(0, len(places), most):
            group = places[start : start + most]
            models = _train_stack(
                trainer, [subsets[i] for i in group], [seeds[i] for i in group], steps, device
            )
            for place, model in zip(group, models, strict=True):
                found[place] = model
    return [model for model in found if model is not None]


def reason_not_vectorisable(trainer: Trainer, sizes: Sequence[int]) -> str | None:
    """Say why models cannot be trained in a stack; None if they can."""
    if trainer.optimizer not in ELEMENTWISE:
        return f"{trainer.optimizer.__name__} does not treat parameters one entry at a time"
    modules = list(build_model(trainer.model, 0).modules())
    for module in modules:
        if isinstance(module, _RANDOM_LAYERS):
            return f"{type(module).__name__} draws random numbers, which a stack draws otherwise"
        if isinstance(module, torch.nn.RNNBase):
            return f"{type(module).__name__} is not supported by torch.func"
    short = {0} if trainer.drop_last else {size % trainer.batch_size for size in sizes}
    if len(short) > 1 and any(isinstance(module, _BATCH_NORM) for module in modules):
        return (
            "batch normalisation needs last batches of one size; use subsets of one size or "
            "drop_last=True"
        )
    return _failure_of_a_step(trainer)


def models_at_once(trainer: Trainer, device: torch.device) -> int:
    """How many models fit a quarter of the free memory of ``device``, from 1 to 64."""
    model = build_model(trainer.model, 0).to(device)
    sizes = []

    def record(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(record) for module in model.modules()]
    with torch.no_grad():
        model.eval()(trainer.inputs[: trainer.batch_size].to(device))
    for handle in handles:
        handle.remove()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = 3 * sum(sizes) + 6 * parameters  # activations and gradients; optimizer state
    return int(max(1, min(_MOST_AT_ONCE, _SHARE_OF_MEMORY * _free_bytes(device) // needed)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(kilobytes)
    except (OSError, StopIteration):
        return 2 * 2**30


def _train_stack(
    trainer: Trainer,
    subsets: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
    steps: int,
    device: torch.device | str,
) -> list[torch.nn.Module]:
    models = [build_model(trainer.model, seed).to(device).train() for seed in seeds]
    parameters, buffers = stack_module_state(models)
    inputs, targets = trainer.inputs.to(device), trainer.targets.to(device)
    optimizer, schedule = trainer.make_optimizer(list(parameters.values()), steps)
    dtype = next(iter(parameters.values())).dtype
    losses = _stacked_loss(trainer, models[0])

    for epoch in range(trainer.epochs):
        orders = [batch_order(s, seed, epoch) for s, seed in zip(subsets, seeds, strict=True)]
        for batch, weight in _batches(orders, trainer.batch_size, steps // trainer.epochs):
            rows = torch.from_numpy(batch).to(device)
            optimizer.zero_grad()
            total = losses(
                (parameters, buffers),
                inputs[rows],
                targets[rows],
                torch.from_numpy(weight).to(dtype).to(device),
            ).sum()
            total.backward()
            optimizer.step()
            schedule.step()
    for place, model in enumerate(models):
        state = {name: stack[place] for name, stack in {**parameters, **buffers}.items()}
        model.load_state_dict(state, strict=False)
        model.eval()
    return models


def _stacked_loss(trainer: Trainer, skeleton: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """Loss [K] of stacked states on batches [K, b, …] with weights [K, b]."""
    wide = wide_forward(skeleton)
    if wide is not None:
        of_outputs = vmap(lambda outputs, wanted, w: (trainer.loss(outputs, wanted) * w).sum())

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
        return (trainer.loss(functional_call(skeleton, state, (batch,)), wanted) * weight).sum()

    return vmap(weighted_loss)


def _failure_of_a_step(trainer: Trainer) -> str | None:
    """Try the loss of a stack of two models; say why torch.func refuses, if it does."""
    models = [build_model(trainer.model, seed).train() for seed in range(2)]
    count = min(4, trainer.num_examples)
    batch, wanted = (
        torch.stack([part[:count]] * 2).cpu() for part in (trainer.inputs, trainer.targets)
    )
    try:
        stack = stack_module_state(models)
        _stacked_loss(trainer, models[0])(stack, batch, wanted, torch.ones(2, count))
    except Exception as error:  # whatever a user's model raises under vmap
        return f"torch.func cannot batch the model: {str(error).splitlines()[0]}"
    return None


def _batches(
    orders: Sequence[NDArray[np.int64]], size: int, count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Batches [K, b] of all models, and the weight of each slot in its model's mean loss.

    A model whose batch is shorter than the longest fills up with other examples of weight 0.
    """
    found = []
    sizes = np.array([len(order) for order in orders])
    padded = np.stack([np.resize(order, sizes.max()) for order in orders])
    for start in range(0, count * size, size):
        lengths = np.clip(sizes - start, 0, size)[:, None]
        batch = padded[:, start : start + int(lengths.max())]
        found.append((batch, (np.arange(batch.shape[1]) < lengths) / lengths))
    return found

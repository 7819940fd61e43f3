"""A training loop whose result is a function of (subset, seed), alone or among others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from coarlib.devices import float32_products
from coarlib.errors import TaskError, nearest
from coarlib.retraining.data import as_data, as_subset
from coarlib.retraining.initial import initial_models
from coarlib.retraining.purity import check_pure
from coarlib.retraining.randomness import batch_order, checked_seed, seeded
from coarlib.retraining.schedules import Schedule, check_schedule, make_schedule

__all__ = ["Loss", "Trainer", "cross_entropy"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Augment = Callable[[torch.Tensor], torch.Tensor]
BATCH_NORM = torch.nn.modules.batchnorm._NormBase
AUTOCAST = ("none", "tf32", "bf16")
_STRIDE = 1_000_003  # between the seeds of two augmented batches


def cross_entropy(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each example, [B, C] and [B] -> [B]; of an output's ``logits``, if any."""
    return functional.cross_entropy(getattr(outputs, "logits", outputs), targets, reduction="none")


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains a model on any subset of a data set held in memory.

    Calling :meth:`train` twice, or through :func:`coarlib.retraining.vectorised.train_many`, gives
    the same model: torch's, NumPy's and Python's generators are seeded around initialisation and
    training. What draws its random numbers elsewhere is refused by the first call.

    Parameters
    ----------
    model : callable () -> nn.Module
        Makes a fresh model; its initialisation is seeded.
    inputs, targets : tensors or arrays [N, …]
        Or ``inputs`` is a Dataset of (input, target) pairs, which is read once. NumPy's floating
        point numbers become torch's default.
    epochs, batch_size : int
    optimizer : type of torch.optim.Optimizer, or callable (parameters, **options) -> Optimizer
    options : mapping
        The optimizer's arguments (``lr``, ``momentum``, ``weight_decay`` …).
    schedule : "constant", "cosine", "linear", or callable (optimizer, steps) -> LRScheduler
        Factor of the learning rate, stepped every batch, from 1 to 0; or a scheduler of torch.
    loss : callable (outputs [B, …], targets [B, …]) -> [B]
        One number an example.
    drop_last : bool
        Leave out an epoch's last batch if it is short.
    warmup : int
        Steps in which the factor rises linearly to 1, before the schedule.
    clip_norm : float, optional
        Largest norm of a step's gradient, as ``torch.nn.utils.clip_grad_norm_``.
    augment : callable (inputs [B, …]) -> [B, …], optional
        Changes the inputs of every batch; its random numbers are a function of (seed, step).
    autocast : {"none", "tf32", "bf16"}
        Precision of matrix products and convolutions: that of the parameters; on a CUDA device that
        has it, with factors rounded to TF32; or, as ``torch.autocast`` decides, in bfloat16.
    """

    model: Callable[[], torch.nn.Module]
    inputs: torch.Tensor
    targets: torch.Tensor = None  # type: ignore[assignment]  # a Dataset holds them
    epochs: int = 1
    batch_size: int = 64
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1, "momentum": 0.9})
    schedule: Schedule = "constant"
    loss: Loss = cross_entropy
    drop_last: bool = False
    warmup: int = 0
    clip_norm: float | None = None
    augment: Augment | None = None
    autocast: str = "none"
    verdicts: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _proven: set[str] = field(default_factory=set, init=False, repr=False)
    _placed: dict[torch.device, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        inputs, targets = as_data(self.inputs, self.targets)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        if isinstance(self.model, torch.nn.Module) or not callable(self.model):
            raise TaskError(
                "model must be a function that makes a fresh model each time it is called, not "
                f"{type(self.model).__name__}"
            )
        if isinstance(self.optimizer, torch.optim.Optimizer) or not callable(self.optimizer):
            raise TaskError(
                "optimizer must be a class such as torch.optim.AdamW, with its arguments in options"
            )
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise TaskError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise TaskError(f"clip_norm must be above 0, not {self.clip_norm}")
        if self.autocast not in AUTOCAST:
            raise TaskError(
                f"autocast must be {', '.join(AUTOCAST)}, not {self.autocast!r}"
                f"{nearest(str(self.autocast), AUTOCAST)}"
            )
        check_schedule(self.schedule, self.warmup)

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.inputs)

    def placed(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets on a device, where they stay."""
        device = torch.device(device)
        if device not in self._placed:
            self._placed[device] = self.inputs.to(device), self.targets.to(device)
        return self._placed[device]

    def forward(self, device: torch.device | str) -> torch.autocast:
        """Return the context of forward passes, with their precision."""
        kind, half = torch.device(device).type, self.autocast == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False)

    def products(self) -> AbstractContextManager[None]:
        """Return the context of forward and backward passes, in which TF32 is on or off."""
        return float32_products(self.autocast == "tf32")

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

    def check_size(self, size: int) -> None:
        """Raise TaskError if a subset of ``size`` examples cannot be trained on."""
        self.num_steps(size)
        if self.drop_last or size % self.batch_size != 1:
            return
        model = self.new_model(0)
        if not any(isinstance(module, BATCH_NORM) for module in model.modules()):
            return
        try:
            with seeded(0):
                model.train()(self.inputs[:1])
        except ValueError as error:
            raise TaskError(
                f"the last batch of a subset of {size} examples is a single one, which batch "
                "normalisation cannot train on; use drop_last, or another batch_size"
            ) from error

    def new_model(self, seed: int) -> torch.nn.Module:
        """Make a model with the initialisation that ``seed`` gives, leaving all generators be."""
        with seeded(seed):
            return self._made()

    def new_models(self, seeds: Sequence[int], device: torch.device) -> list[torch.nn.Module]:
        """Make the models that :meth:`new_model` makes, large ones side by side on a device."""
        return initial_models(self._made, [checked_seed(seed) for seed in seeds], device)

    def _made(self) -> torch.nn.Module:
        made = self.model()
        if not isinstance(made, torch.nn.Module):
            raise TaskError(f"model() returned {type(made).__name__}, not a torch.nn.Module")
        return made

    def make_optimizer(
        self, parameters: list[torch.Tensor], steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Build the optimizer and its schedule over ``steps`` steps."""
        optimizer = self.optimizer(parameters, **self.options)
        return optimizer, make_schedule(self.schedule, optimizer, steps, self.warmup)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each example, [B].

        Raises
        ------
        TaskError
            If the loss returns anything of another shape.
        """
        found = self.loss(outputs, targets)
        if not isinstance(found, torch.Tensor) or found.shape != targets.shape[:1]:
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise TaskError(
                f"the loss returned {shape} for {len(targets)} examples, not one number an example "
                f"[{len(targets)}]: let it reduce nothing over examples and the rest of each, and "
                "give outputs and targets one shape"
            )
        return found

    def batches(self, subset: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.int64]]:
        """Yield the examples of every step of a training run."""
        for epoch in range(self.epochs):
            order = batch_order(subset, seed, epoch, self.num_examples)
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                if len(batch) == self.batch_size or not self.drop_last:
                    yield batch

    def augmented(self, inputs: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """Return the inputs of one model's batch as they enter the model."""
        if self.augment is None:
            return inputs
        with seeded((seed * _STRIDE + step) % 2**63, inputs.device):
            return self.augment(inputs)

    def train(self, subset: Any, seed: int, device: torch.device | str = "cpu") -> torch.nn.Module:
        """Train one model.

        Parameters
        ----------
        subset : whole numbers [k], or bool [N]
            The examples, or a mask of them.
        seed : int
            Of initialisation, order, and whatever the model draws from torch's, NumPy's and
            Python's generators.
        device : torch.device or str

        Returns
        -------
        nn.Module
            In evaluation mode.

        Raises
        ------
        TaskError
            If the subset cannot be trained on, the loss is not one number an example, or two equal
            calls differ.
        """
        examples = as_subset(subset, self.num_examples)
        self.check_size(len(examples))
        self.check_pure(torch.device(device))
        return self.run(examples, checked_seed(seed), device)

    def run(
        self,
        subset: NDArray[np.int64],
        seed: int,
        device: torch.device | str = "cpu",
        after_step: Callable[[], object] = lambda: None,
    ) -> torch.nn.Module:
        """Train as :meth:`train` does, without its checks."""
        inputs, targets = self.placed(device)
        steps = self.num_steps(len(subset))
        with seeded(seed, device), self.products():
            model = self._made().to(device).train()
            optimizer, schedule = self.make_optimizer(list(model.parameters()), steps)
            for step, examples in enumerate(self.batches(subset, seed)):
                batch = torch.from_numpy(examples).to(device)
                entering, wanted = self.augmented(inputs[batch], seed, step), targets[batch]

                def closure(x: torch.Tensor = entering, y: torch.Tensor = wanted) -> torch.Tensor:
                    optimizer.zero_grad()
                    with self.forward(device):
                        loss = self.losses(model(x), y).mean()
                    loss.backward()
                    if self.clip_norm is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
                    return loss.detach()  # no number: that would wait for the device

                optimizer.step(closure)  # type: ignore[arg-type]  # whose stub wants a number
                schedule.step()
                after_step()
        return model.eval()

    def check_pure(self, device: torch.device) -> None:
        """Train for one step twice, once for each device; TaskError if the two differ."""
        size = min(self.batch_size, self.num_examples)
        if device.type in self._proven or (self.drop_last and size < self.batch_size):
            return
        probe, examples = self.for_a_step(), np.arange(size)
        check_pure(self.model, lambda: probe.run(examples, 1, device), device)
        self._proven.add(device.type)

    def for_a_step(self) -> Trainer:
        """Return this trainer with one epoch at its full learning rate."""
        return replace(self, epochs=1, warmup=0, schedule="constant")

    def facts(self) -> tuple[Any, ...]:
        """Return all that a trained model depends on besides subset and seed, for a digest."""
        model = self.new_model(0)
        kinds = [(name, type(module).__qualname__) for name, module in model.named_modules()]
        settings: tuple[Any, ...]
        settings = (self.epochs, self.batch_size, self.drop_last, self.warmup, self.clip_norm)
        settings += () if self.autocast == "none" else (self.autocast,)
        # By name: torch wraps an optimizer's step when the first one is made.
        torchs = getattr(self.optimizer, "__module__", "").startswith("torch.")
        optimizer = getattr(self.optimizer, "__qualname__", "") if torchs else self.optimizer
        functions = (self.model, self.schedule, self.loss, self.augment, optimizer)
        state = dict(model.state_dict())
        return kinds, state, settings, functions, dict(self.options), self.inputs, self.targets


def accepted(function: Callable[..., Any], *names: str) -> set[str]:
    """Return which keyword arguments a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set(names)
    return {parameter.name for parameter in parameters} & set(names)

"""The first weights of many models, drawn side by side, each as its seed alone draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from coarlib.retraining.purity import difference, full_state
from coarlib.retraining.randomness import random_state, seed_generators, seeded

__all__ = ["initial_models"]

_WORTH = 2**17  # numbers of a model: fewer are not worth a thread
_UNLIKELY = 4_611_686_018_427_388_091  # no seed that a constructor would set itself
_DRAWS = {"bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm"}
_DRAWS |= {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_"}
_DRAWS |= {"random_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}


def initial_models(
    make: Callable[[], torch.nn.Module], seeds: Sequence[int], device: torch.device
) -> list[torch.nn.Module]:
    """Make a model with the weights that each seed gives, leaving all generators be.

    Small models stay where they were made, as a stack of them goes to a device at once; large ones
    are on ``device``. torch has one generator for a process, from which models are drawn one after
    another. Here each thread draws from a generator of its own that has the model's seed: the same
    numbers. A model that draws elsewhere too is seen (a process-wide generator moved, or the first
    model differs from the one made alone), and so is one that changes what all threads share while
    it is made (torch's default dtype, initialisers); all are made one after another then.
    """
    with seeded(seeds[0]), _Watching() as watching:
        first = make()
    drawn = None
    threads = min(torch.get_num_threads(), len(seeds))
    if threads > 1 and not watching.changed and _size(first) >= _WORTH:
        drawn = _side_by_side(make, seeds, threads, device)
    if drawn is not None:
        alone = {name: part.to(device) for name, part in full_state(first).items()}
        if difference(alone, full_state(drawn[0]), 0.0) is None:
            return drawn
    found = [first]
    with seeded(seeds[0]):
        for seed in seeds[1:]:
            seed_generators(seed)
            found.append(make())
    return found


def _size(model: torch.nn.Module) -> int:
    """Count parameters; none of a model that has some without numbers yet."""
    parts = [*model.parameters(), *model.buffers()]
    if any(is_lazy(part) or part.is_meta for part in parts):
        return 0
    return sum(part.numel() for part in model.parameters())


def _side_by_side(
    make: Callable[[], torch.nn.Module], seeds: Iterable[int], threads: int, device: torch.device
) -> list[torch.nn.Module] | None:
    """Make models in threads; None if one fails, or if a process-wide generator moved."""
    place = torch.empty(0, device=device).device  # with its index, which threads do not share

    def one(seed: int) -> torch.nn.Module:
        with _DrawsFrom(torch.Generator().manual_seed(seed)):
            return make().to(place)

    with seeded(_UNLIKELY, place):
        before = random_state(place)
        try:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(one, seeds))
        except Exception:  # making them one after another says why
            return None
        return found if random_state(place) == before else None


def _shared_by_threads() -> tuple[Any, ...]:
    """What a constructor may change for a while: Transformers' and accelerate's loading does."""
    module, makers = torch.nn.Module, (torch.empty, torch.zeros, torch.ones, torch.full)
    registers = module.register_parameter, module.register_buffer
    return torch.get_default_dtype(), dict(vars(torch.nn.init)), *registers, *makers


class _Watching(TorchFunctionMode):
    """See whether what all threads share is changed at some call of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self._before = _shared_by_threads()
        self.changed = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.changed = self.changed or _shared_by_threads() != self._before
        return function(*args, **(kwargs or {}))


class _DrawsFrom(TorchFunctionMode):
    """In this thread, what draws from torch's generator draws from another one."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__name__", "") in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return function(*args, **kwargs)

"""How many examples go through a model at once: settled by its activations, or by a short probe.

On a processor batches are fastest whose activations stay near it, in its caches. An accelerator
wants enough work a launch, which a few timed batches find out. Neither changes a row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

# Numbers that the largest activation, or inputs and logits together, of a batch may have.
ACTIVATION, WHOLE = 2**21, 2**23
MOST = 500
SECONDS = 4.0
FEWEST, WHILE = 3, 0.2  # runs, seconds: of a timing
GAIN = 1.03  # what a doubled batch has to bring to be taken


class Largest:
    """Counts the numbers of the largest tensor that a submodule returns."""

    numbers = 0

    def see(self, module: nn.Module, inputs: object, output: object) -> None:
        """Look at what a module returned (a forward hook)."""
        if isinstance(output, torch.Tensor):
            self.numbers = max(self.numbers, output.numel())


@contextmanager
def largest_activation(network: nn.Module) -> Iterator[Largest]:
    """Watch the activations of every submodule while the context is open."""
    largest = Largest()
    hooks = [module.register_forward_hook(largest.see) for module in network.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def batch_by_size(activation: int, whole: int, count: int) -> int:
    """Return the batch for a processor.

    Parameters
    ----------
    activation : int
        Numbers of the largest activation of a few examples.
    whole : int
        Numbers of the inputs and logits of these.
    count : int
        How many these are.
    """
    largest, whole = (max(1, numbers // count) for numbers in (activation, whole))
    return max(1, min(MOST, ACTIVATION // largest, WHOLE // whole))


def announced_batch(
    device: torch.device, run: Callable[[int], None], count: int, start: int
) -> int:
    """Return the batch that :func:`batch_by_probe` finds, and say in one line what it promises."""
    size, rate = batch_by_probe(run, count, start)
    print(
        f"{device}: {size} examples a forward pass, {rate:,.0f} examples/s, about "
        f"{rate / count:.3g} rows/s",
        file=sys.stderr,
    )
    return size


def batch_by_probe(
    run: Callable[[int], None],
    count: int,
    start: int = 1,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, float]:
    """Double the batch while that is faster, on the machine at hand.

    Parameters
    ----------
    run : callable (size)
        Runs one batch and waits until it has ended.
    count : int
        Examples there are: the largest batch.
    start : int
        The first size to try.
    seconds : float
        What the probe may take; the size that is being timed when they end is the last.
    clock : callable
        Seconds.

    Returns
    -------
    size : int
    rate : float
        Examples a second that it runs at.

    Raises
    ------
    torch.OutOfMemoryError
        If the first size does not fit.
    """
    began = clock()
    size = best = max(1, min(start, count))
    highest = 0.0
    while True:
        try:
            took = fastest(partial(run, size), clock)
        except torch.OutOfMemoryError:
            if not highest:
                raise
            return best, highest
        rate = size / max(took, 1e-9)
        gained = rate > highest * GAIN
        if gained:
            best, highest = size, rate
        if size == count or not gained or clock() - began > seconds:
            return best, highest
        size = min(count, 2 * size)


def fastest(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of three or more runs, of which the first one warms up.

    A run has to wait until the device has ended. Short ones are repeated for a while, in which an
    idle accelerator raises its clock.
    """
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < WHILE and len(times) < MOST):
        began = clock()
        run()
        times.append(clock() - began)
    return min(times)

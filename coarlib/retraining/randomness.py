"""Seeds: every random number of a training run is a function of (seed, row, run).

Rows that are compared with one another as differences (leaving one example out) use the same
random numbers: :func:`run_seed` is asked for the same seed, and :func:`batch_order` puts the
examples that two subsets have in common into the same order.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import TaskError

__all__ = ["batch_order", "checked_seed", "random_state", "run_seed", "seed_generators", "seeded"]


def run_seed(seed: int, index: int, run: int) -> int:
    """Seed of run ``run`` of row ``index``: below 2^31, as NumPy and others need it."""
    state = np.random.SeedSequence([seed, index, run]).generate_state(1, np.uint32)
    return int(state[0] >> 1)


def checked_seed(seed: Any) -> int:
    """Return a seed as a Python number; TaskError unless it is whole and in 0 … 2^63 - 1."""
    try:
        found = operator.index(seed)
    except TypeError as error:
        raise TaskError(f"a seed must be a whole number, not {seed!r}") from error
    if not 0 <= found < 2**63:
        raise TaskError(f"a seed must be at least 0 and below 2^63, not {found}")
    return found


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch, NumPy and Python, and put their states back at the end."""
    seed, device = checked_seed(seed), torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    deterministic = torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=cuda):
        if cuda:
            torch.cuda.manual_seed_all(seed)
            torch.backends.cudnn.deterministic = True
        seed_generators(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            torch.backends.cudnn.deterministic = deterministic


def seed_generators(seed: int) -> None:
    """Seed torch's generator of the host, NumPy's and Python's, for good."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a user's model may draw from
    random.seed(seed)


def random_state(device: torch.device | str = "cpu") -> list[Any]:
    """Return the states of the generators that :func:`seeded` seeds, to see whether they moved."""
    device = torch.device(device)
    numpy_state = np.random.get_state()  # noqa: NPY002
    state = [torch.get_rng_state().tolist(), random.getstate()]
    state += [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device).tolist())
    return state


def batch_order(
    subset: NDArray[np.int64], seed: int, epoch: int, num_examples: int
) -> NDArray[np.int64]:
    """Order of a subset's examples in an epoch.

    One random number an example of the whole data set decides, so that the order depends neither
    on how the subset was sorted nor on which other examples it holds.
    """
    draws = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch])).random(num_examples)
    subset = np.sort(subset)
    return subset[np.argsort(draws[subset], kind="stable")]

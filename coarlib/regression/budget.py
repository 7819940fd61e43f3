"""Predicting the memory and time of a fit before it starts, and refusing what cannot fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from coarlib.devices import free_bytes
from coarlib.errors import RegressionError
from coarlib.regression.rows.blocks import BLOCK_BYTES
from coarlib.regression.solvers import ConjugateGradients, Size, Solver

__all__ = [
    "Prediction",
    "choose_form",
    "duration",
    "predict",
    "seconds_of",
    "summing_bytes",
]

GIB = 2**30
BASE_BYTES = 0.4 * GIB  # Python, torch and compiled code
BIT_SPEED = 6.0  # packed pair counts against a float32 product of the same size
FITS = 2  # of the training rows, and of all rows
MEMORY_SHARE = 0.85  # of what is free


@dataclass(frozen=True)
class Prediction:
    """What a fit will take: bytes of memory at its peak, and seconds."""

    form: str
    peak_bytes: float
    seconds: float

    def __str__(self) -> str:
        return f"about {self.peak_bytes / GIB:.1f} GiB and {duration(self.seconds)}"


def predict(solver: Solver, size: Size) -> Prediction:
    """Predict the peak memory and time of a fit from this machine's speed at matrix products.

    Parameters
    ----------
    solver : Solver
    size : Size
        Its form is ``"primal"`` (N × N matrices), ``"dual"`` (n × n matrices) or ``"stream"``
        (neither).
    """
    summing, solving = seconds_of(solver, size)
    return Prediction(size.form, _peak_bytes(solver, size), summing + solving)


def seconds_of(solver: Solver, size: Size, exact: bool = False) -> tuple[float, float]:
    """Return the seconds of summing the rows (``exact``: in float64, as shares) and of solving."""
    work = 2.0 * size.total * size.features * size.targets
    if size.form == "primal":
        work += size.total * size.features**2 / BIT_SPEED
    elif size.form == "dual":
        work += 4.0 * size.total**2 * size.features
    wide = _speed(torch.float64)
    return work / (wide if exact else _speed(torch.float32)), FITS * solver.work(size) / wide


def summing_bytes(size: Size) -> float:
    """Bytes of a job that sums a share of the rows in the primal form."""
    sums = 8.0 * size.features * (size.features + size.targets)
    return BASE_BYTES + BLOCK_BYTES * 1.5 + 2 * sums


def _peak_bytes(solver: Solver, size: Size) -> float:
    features, total = size.features, size.total
    cross = 8.0 * features * size.targets
    memory = BASE_BYTES + BLOCK_BYTES * 1.5 + 4 * cross + size.held_out * size.targets * 6
    memory += solver.memory(size)
    if size.form == "primal":
        return memory + 3 * 4.0 * features**2 + 4 * 8.0 * features**2
    if size.form == "dual":
        return memory + total * features + 3 * 8.0 * total**2 + 2 * 8.0 * features * total
    return memory + 3 * cross


@cache
def _speed(dtype: torch.dtype, side: int = 768) -> float:
    """Operations a second of a matrix product, measured."""
    a = torch.ones(side, side, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def choose_form(
    solver: Solver, size: Size, limit: float | None = None, device: torch.device | str = "cpu"
) -> Prediction:
    """Choose between the primal and the dual form by size and memory.

    Parameters
    ----------
    solver : Solver
    size : Size
    limit : float, optional
        Bytes that may be used; a share of what is free by default, on this machine and on
        ``device``, where the sums and matrices are.
    device : torch.device or str

    Raises
    ------
    RegressionError
        If no form fits, with how much is needed and which blocks of targets, or which other
        solver, would.
    """
    allowed, where = _allowed(limit, device)
    forms = _forms(solver, size)
    options = [predict(solver, replace(size, form=form)) for form in forms]
    for option in options:
        if option.peak_bytes <= allowed:
            return option
    needed = min(option.peak_bytes for option in options)
    said = (
        f"solver {solver.name} needs about {needed / GIB:.1f} GiB for {size.total} rows, "
        f"{size.features} features and {size.targets} targets, but {allowed / GIB:.1f} GiB may be "
        f"used{where}; {_shards_that_fit(solver, size, forms, allowed)}"
    )
    if "stream" not in forms:
        stream = _peak_bytes(ConjugateGradients(), replace(size, form="stream"))
        said += (
            f", and solver conjugate_gradients (which needs no {size.features} × {size.features} "
            f"matrix) takes about {stream / GIB:.1f} GiB"
        )
    raise RegressionError(said)


def _forms(solver: Solver, size: Size) -> list[str]:
    """Return the forms that a solver can take, the cheaper one first."""
    if "rows" in solver.needs:
        return ["stream"]
    if "gram" in solver.needs:
        return ["primal"]
    return ["dual", "primal"] if 2 * size.total < size.features else ["primal", "dual"]


def _allowed(limit: float | None, device: torch.device | str) -> tuple[float, str]:
    """Bytes that may be used, and where that is the limit."""
    if limit is not None:
        return limit, ""
    host = MEMORY_SHARE * free_bytes()
    if torch.device(device).type != "cuda":
        return host, ""
    # What Python and torch take for themselves is on the host.
    there = MEMORY_SHARE * free_bytes(device) + BASE_BYTES
    return (there, f" on {device}") if there < host else (host, " on the host")


def _shards_that_fit(solver: Solver, size: Size, forms: Sequence[str], allowed: float) -> str:
    """Say into how few blocks of targets the fit would have to be cut."""
    powers = [2**i for i in range(1, size.targets.bit_length()) if 2**i < size.targets]
    for count in [*powers, size.targets]:
        block = replace(size, targets=-(-size.targets // count))
        if min(_peak_bytes(solver, replace(block, form=form)) for form in forms) <= allowed:
            return f"{count} blocks of {block.targets} targets, fitted one by one, would fit"
    return "no block of targets would fit"


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

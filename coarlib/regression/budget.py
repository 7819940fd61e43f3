"""Predicting the memory and time of a fit before it starts, and refusing what cannot fit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from coarlib.errors import RegressionError
from coarlib.regression.blocks import BLOCK_BYTES

__all__ = ["Prediction", "Size", "available_bytes", "choose_form", "predict"]

GIB = 2**30
BASE_BYTES = 0.4 * GIB  # Python, torch and compiled code
BIT_SPEED = 6.0  # packed pair counts against a float32 product of the same size
EM_STEPS = 40
MEMORY_SHARE = 0.85  # of what is free
SMALL_FEATURES = 4096


@dataclass(frozen=True)
class Prediction:
    """What a fit will take: bytes of memory at its peak, and seconds."""

    form: str
    peak_bytes: float
    seconds: float

    def __str__(self) -> str:
        return f"about {self.peak_bytes / GIB:.1f} GiB and {_duration(self.seconds)}"


def available_bytes() -> int:
    """Memory that this machine has free, in bytes."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 * GIB


@dataclass(frozen=True)
class Size:
    """Rows to fit and to hold out, features and targets of a fit."""

    rows: int
    held_out: int
    features: int
    targets: int


def predict(solver: str, size: Size, form: str = "primal") -> Prediction:
    """Predict the peak memory and time of a fit from this machine's speed at matrix products.

    Parameters
    ----------
    solver : str
    size : Size
    form : str
        ``"primal"`` (N × N matrices), ``"dual"`` (n × n matrices) or ``"stream"`` (neither).
    """
    features, targets = size.features, size.targets
    total = size.rows + size.held_out
    cross = 8.0 * features * targets
    memory = BASE_BYTES + BLOCK_BYTES * 1.5 + 3 * cross + 2 * cross / 2
    memory += size.held_out * targets * 6
    work = 2.0 * total * features * targets  # float32
    side = features if form == "primal" else total
    if form == "primal":
        memory += 3 * 4.0 * features**2 + 4 * 8.0 * features**2
        work += total * features**2 / BIT_SPEED
    elif form == "dual":
        memory += total * features + 3 * 8.0 * total**2 + 2 * 8.0 * features * total
        work += 4.0 * total**2 * features
    else:
        memory += 3 * cross + (4.0 * total * targets if solver == "saga" else 0)
    wide = _solver_work(solver, side, features, targets)
    return Prediction(form, memory, work / _speed(torch.float32) + wide / _speed(torch.float64))


def _solver_work(solver: str, side: int, features: int, targets: int) -> float:
    """Float64 operations of both fits (training rows; all rows)."""
    eigen = 2 * (25.0 * side**3 + 4.0 * side * features * targets)
    learning = EM_STEPS * (2.0 * side**3 + 2.0 * side * features * min(targets, 1024))
    descent = 12.0 * targets * (features / 2000) ** 2 * 1e8
    each = {
        "least_squares": 2 * (1.5 * side**3 + 4.0 * side * features * targets),
        "ridge": eigen,
        "shared_prior": eigen + 2 * learning,
        "tempered_prior": eigen + 2 * learning,
        "informed_prior": eigen + 4 * learning,
        "lasso": descent,
        "auto": eigen + 3 * (eigen + learning) / 2 + descent,
    }
    return each.get(solver, 4.0 * features * targets * 100)


def _speed(dtype: torch.dtype, side: int = 768) -> float:
    """Operations a second of a matrix product, measured."""
    a = torch.ones(side, side, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def choose_form(solver: str, size: Size, limit: float | None = None) -> Prediction:
    """Choose between the primal and the dual form by size and memory.

    Parameters
    ----------
    solver : str
    size : Size
    limit : float, optional
        Bytes that may be used; a share of what is free by default.

    Raises
    ------
    RegressionError
        If no form fits, with how much is needed and what would fit.
    """
    allowed = limit if limit is not None else MEMORY_SHARE * available_bytes()
    total, features = size.rows + size.held_out, size.features
    if solver in ("saga", "conjugate_gradients"):
        return predict(solver, size, "stream")
    primal, dual = (predict(solver, size, form) for form in ("primal", "dual"))
    needs_matrix = solver == "lasso"
    few = total < features / 2 and features > SMALL_FEATURES
    for option in (dual, primal) if few and not needs_matrix else (primal, dual):
        if option.peak_bytes <= allowed and not (needs_matrix and option is dual):
            return option
    stream = predict("saga", size, "stream")
    raise RegressionError(
        f"solver {solver} needs about {min(primal.peak_bytes, dual.peak_bytes) / GIB:.1f} GiB for "
        f"{total} rows, {features} features and {size.targets} targets, but "
        f"{allowed / GIB:.1f} GiB may be used; a range of targets (--data.target_start_ind, "
        f"--data.target_end_ind) needs less, and --cfg.solver conjugate_gradients (which needs no "
        f"{features} × {features} matrix) about {stream.peak_bytes / GIB:.1f} GiB"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Predicting the memory and time of a fit before it starts, and refusing what cannot fit."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from coarlib.errors import RegressionError
from coarlib.regression.rows.blocks import BLOCK_BYTES

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


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that a CUDA device, or for any other this machine, has free, in bytes."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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
    work = 2.0 * total * features * targets  # float32
    side = features if form == "primal" else total
    if form == "primal":
        work += total * features**2 / BIT_SPEED
    elif form == "dual":
        work += 4.0 * total**2 * features
    wide = _solver_work(solver, side, features, targets)
    seconds = work / _speed(torch.float32) + wide / _speed(torch.float64)
    return Prediction(form, _peak_bytes(solver, size, form), seconds)


def _peak_bytes(solver: str, size: Size, form: str) -> float:
    features, targets, total = size.features, size.targets, size.rows + size.held_out
    cross = 8.0 * features * targets
    memory = BASE_BYTES + BLOCK_BYTES * 1.5 + 4 * cross + size.held_out * targets * 6
    if form == "primal":
        return memory + 3 * 4.0 * features**2 + 4 * 8.0 * features**2
    if form == "dual":
        return memory + total * features + 3 * 8.0 * total**2 + 2 * 8.0 * features * total
    return memory + 3 * cross + (4.0 * total * targets if solver == "saga" else 0)


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
        # The prior is learnt once for both candidates, and once more on all rows.
        "auto": 2 * (eigen + learning) + descent,
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


def choose_form(
    solver: str, size: Size, limit: float | None = None, device: torch.device | str = "cpu"
) -> Prediction:
    """Choose between the primal and the dual form by size and memory.

    Parameters
    ----------
    solver : str
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
    total, features = size.rows + size.held_out, size.features
    if solver in ("saga", "conjugate_gradients"):
        return predict(solver, size, "stream")
    primal, dual = (predict(solver, size, form) for form in ("primal", "dual"))
    needs_matrix = solver == "lasso"
    few = total < features / 2 and features > SMALL_FEATURES
    for option in (dual, primal) if few and not needs_matrix else (primal, dual):
        if option.peak_bytes <= allowed and not (needs_matrix and option is dual):
            return option
    forms = ("primal",) if needs_matrix else ("primal", "dual")
    needed = min(_peak_bytes(solver, size, form) for form in forms)
    stream = _peak_bytes("conjugate_gradients", size, "stream")
    raise RegressionError(
        f"solver {solver} needs about {needed / GIB:.1f} GiB for {total} rows, {features} "
        f"features and {size.targets} targets, but {allowed / GIB:.1f} GiB may be used{where}; "
        f"{_shards_that_fit(solver, size, forms, allowed)}, and --cfg.solver conjugate_gradients "
        f"(which needs no {features} × {features} matrix) takes about {stream / GIB:.1f} GiB"
    )


def _allowed(limit: float | None, device: torch.device | str) -> tuple[float, str]:
    """Bytes that may be used, and where that is the limit."""
    if limit is not None:
        return limit, ""
    host = MEMORY_SHARE * available_bytes()
    if torch.device(device).type != "cuda":
        return host, ""
    # What Python and torch take for themselves is on the host.
    there = MEMORY_SHARE * available_bytes(device) + BASE_BYTES
    return (there, f" on {device}") if there < host else (host, " on the host")


def _shards_that_fit(solver: str, size: Size, forms: Sequence[str], allowed: float) -> str:
    """Say into how few blocks of targets the fit would have to be cut."""
    powers = [2**i for i in range(1, size.targets.bit_length()) if 2**i < size.targets]
    for count in [*powers, size.targets]:
        block = replace(size, targets=-(-size.targets // count))
        if min(_peak_bytes(solver, block, form) for form in forms) <= allowed:
            return (
                f"{count} blocks of {block.targets} targets would fit (coar fit_targets … "
                f"--shard.count {count}, or --data.target_start_ind and --data.target_end_ind)"
            )
    return "no block of targets would fit"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

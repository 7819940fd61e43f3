"""In which precision an ablated model computes, and choosing it by what its rounding may cost.

Rounding is noise in the rows. Where it is a hundredth of what they vary by, or less, no fit sees it
(a linear model leaves tens of percent of that unexplained), and half precision is several times as
fast where a device computes in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch

PRECISIONS = {
    "none": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "pure_bf16": torch.bfloat16,
    "pure_fp16": torch.float16,
}
"""Dtypes by name. ``pure`` ones hold the whole model; others cast at each matrix product."""

AUTO = "auto"
ROWS, KEEP, FEW, MOST = 8, 0.95, 4, 64
NOISE = 0.01  # of the variance of outputs over rows
FASTER = 1.2
SECONDS = 2.0


def is_pure(name: str) -> bool:
    """Whether the whole model is held in a precision of :data:`PRECISIONS`."""
    return name.startswith("pure_")


def computing_in(name: str, device: torch.device) -> torch.autocast:
    """Return the context in which models compute in a precision of :data:`PRECISIONS`."""
    dtype = None if is_pure(name) else PRECISIONS[name]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def native(device: torch.device) -> list[str]:
    """Name the lower precisions that a device multiplies in."""
    if device.type == "cuda":
        return ["pure_fp16", "fp16", "pure_bf16", "bf16"]
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return ["pure_bf16", "bf16"]
    return []


def probe_masks(num_features: int) -> torch.Tensor:
    """Return the masks of the rows that are compared, bool [8, N]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(ROWS, num_features, generator=generator) < KEEP


def choose_precision(
    device: torch.device,
    names: Sequence[str],
    measure: Callable[[str, int], torch.Tensor],
    seconds: Callable[[str], float],
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Return the precision to compute rows in, and say in one line why if it is a lower one.

    Parameters
    ----------
    device : torch.device
    names : sequence of str
        Lower precisions to try.
    measure : callable (precision, count)
        Returns outputs [8, …] of a few rows on the first ``count`` examples, on the CPU.
    seconds : callable (precision)
        Times a batch as rows run it.
    clock : callable
        Seconds.

    Returns
    -------
    str
        The fastest whose rounding is under 1% of the variance of the outputs over rows, if it is
        faster by a fifth or more; else ``"none"``.
    """
    if not names:
        return "none"
    began = clock()
    measure("none", FEW)
    few = clock() - began
    count = int(min(MOST, max(FEW, FEW * SECONDS / max(few, 1e-9))))
    exact = measure("none", count)
    best, noise, gain, slow = "none", 0.0, FASTER, seconds("none")
    for name in names:
        try:
            lost = _variance(measure(name, count) - exact) / max(_variance(exact), 1e-300)
            faster = slow / max(seconds(name), 1e-9) if lost < NOISE else 0.0
        except (RuntimeError, TypeError):  # a model that mixes dtypes, or has an operation less
            continue
        if faster > gain:
            best, noise, gain = name, lost, faster
    if best != "none":
        print(
            f"{device}: computing in {best}, {gain:.1f} times as fast; its rounding is "
            f"{noise:.2%} of the outputs' variance over rows",
            file=sys.stderr,
        )
    return best


def _variance(outputs: torch.Tensor) -> float:
    """Mean over targets of the variance over rows; infinite where an output is not finite."""
    found = float(outputs.double().var(0).mean())
    return found if found < torch.inf else torch.inf

"""In which precision an ablated model computes, and choosing it by what its rounding may cost.

Rounding is noise in the rows. Where it is a hundredth of what they vary by, or less, no fit sees it
(a linear model leaves tens of percent of that unexplained), and half precision is several times as
fast where a device computes in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
ROWS, KEEP, FEW, MOST = 8, 0.95, 4, 64
NOISE = 0.01  # of the variance of outputs over rows
FASTER = 1.2
SECONDS = 2.0


def computing_in(name: str, device: torch.device) -> torch.autocast:
    """Return the context in which models compute in a precision of :data:`AUTOCAST`."""
    dtype = AUTOCAST[name]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def native(device: torch.device) -> list[str]:
    """Name the half precisions that a device multiplies in, that which rounds least first."""
    if device.type == "cuda":
        return ["fp16", "bf16"]
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return ["bf16"]
    return []


def probe_masks(num_features: int) -> torch.Tensor:
    """Return the masks of the rows that are compared, bool [8, N]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(ROWS, num_features, generator=generator) < KEEP


def choose_precision(
    device: torch.device,
    measure: Callable[[str, int], torch.Tensor],
    names: list[str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Return the precision to compute rows in, and say in one line why if it is a lower one.

    Parameters
    ----------
    device : torch.device
    measure : callable (precision, count)
        Returns outputs [8, …] of a few rows on the first ``count`` examples, on the CPU.
    names : list of str, optional
        Lower precisions to try; by default those of the device.
    clock : callable
        Seconds.

    Returns
    -------
    str
        The first whose rounding is under 1% of the variance of the outputs over rows, and which is
        a fifth faster or more; else ``"none"``.
    """
    names = native(device) if names is None else names
    if not names:
        return "none"
    _, few = _timed(measure, "none", FEW, clock)
    count = int(min(MOST, max(FEW, FEW * SECONDS / max(few, 1e-9))))
    exact, slow = _timed(measure, "none", count, clock)
    for name in names:
        measure(name, count)  # the first run prepares what the others use
        rough, fast = _timed(measure, name, count, clock)
        noise = _variance(rough - exact) / max(_variance(exact), 1e-300)
        if noise < NOISE and slow > FASTER * fast:
            print(
                f"{device}: computing in {name}, {slow / fast:.1f} times as fast; its rounding is "
                f"{noise:.2%} of the outputs' variance over rows",
                file=sys.stderr,
            )
            return name
    return "none"


def _timed(
    measure: Callable[[str, int], torch.Tensor], name: str, count: int, clock: Callable[[], float]
) -> tuple[torch.Tensor, float]:
    began = clock()
    found = measure(name, count)
    return found, clock() - began


def _variance(outputs: torch.Tensor) -> float:
    """Mean over targets of the variance over rows; infinite where an output is not finite."""
    found = float(outputs.double().var(0).mean())
    return found if found < torch.inf else torch.inf

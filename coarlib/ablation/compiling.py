"""``torch.compile`` for ablated models, where it works, computes the same and pays."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn

from coarlib.ablation.tuning import fastest

# Rows come first for so many seconds: compiling costs as much, and never doubles what rows cost.
PATIENCE = {"cuda": 60.0, "cpu": 300.0}
# On an accelerator kernels of convolutions are chosen by trying them: small ones gain most. Trying
# those of matrix products takes minutes and gains little over the library's.
CONVOLUTIONS: dict[str, Any] = {"max_autotune": True, "coordinate_descent_tuning": True}
PRODUCTS: dict[str, Any] = {"coordinate_descent_tuning": True}
FASTER = 1.05


def patience(device: torch.device) -> float:
    """Return how many seconds of rows are computed before compiling is tried unasked."""
    return PATIENCE.get(device.type, torch.inf)


def compiled_or_plain(
    network: nn.Module,
    run: Callable[[nn.Module], torch.Tensor],
    tolerance: float,
    device: torch.device | None = None,
    faster: float = 0.0,
) -> nn.Module:
    """Return the compiled network, or say in one sentence why it is not used and return the plain.

    Parameters
    ----------
    network : nn.Module
        Its parameters may change in place afterwards: they are inputs of what is compiled.
    run : callable
        Runs a network on a batch of the size to come and returns the logits.
    tolerance : float
        The largest difference of logits, relative to 1 + the largest one.
    device : torch.device, optional
        What it is compiled for.
    faster : float
        How many times as fast as the plain one it has to be.
    """
    expected, slow = _timed(run, network)
    began = time.perf_counter()
    where = device or torch.device("cpu")
    fast = torch.compile(network, options=_options(network, where))
    try:
        with redirect_stderr(io.StringIO()):  # tables of the kernels that were tried
            found = run(fast)  # type: ignore[arg-type]
    except Exception as error:  # whatever the compiler, its driver or the file system raise
        torch.compiler.reset()
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        print(
            f"warning: this runs uncompiled, since torch.compile failed here "
            f"({type(error).__name__}: {reason.strip()[:160]})",
            file=sys.stderr,
        )
        return network
    error_size = float((found - expected).abs().amax()) / (1.0 + float(expected.abs().amax()))
    if not error_size < tolerance:
        print(
            f"warning: this runs uncompiled, since the compiled model differs by {error_size:.1e}",
            file=sys.stderr,
        )
        return network
    took, gain = time.perf_counter() - began, slow / _timed(run, fast)[1]  # type: ignore[arg-type]
    end = "" if gain >= faster else ": not used"
    print(f"{where}: compiled in {took:.0f} s, {gain:.1f} times as fast{end}", file=sys.stderr)
    return fast if gain >= faster else network  # type: ignore[return-value]


def _options(network: nn.Module, device: torch.device) -> dict[str, Any] | None:
    """Return what the compiler is to try, by what most weights are multiplied with."""
    if device.type != "cuda":
        return None
    sizes = {True: 0, False: 0}
    for weight in network.parameters():
        if weight.ndim > 1:
            sizes[weight.ndim > 2] += weight.numel()
    return CONVOLUTIONS if sizes[True] > sizes[False] else PRODUCTS


def _timed(
    run: Callable[[nn.Module], torch.Tensor], network: nn.Module
) -> tuple[torch.Tensor, float]:
    """Logits, and the seconds of the fastest run."""
    # An accelerator has ended when a number is known.
    return run(network), fastest(lambda: float(run(network).flatten()[0]))


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run whatever of a model is compiled as plain Python meanwhile."""
    compiled = any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield

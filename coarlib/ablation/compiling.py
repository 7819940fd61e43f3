"""``torch.compile`` for ablated models, where it works and computes the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compiled_or_plain(
    network: nn.Module, run: Callable[[nn.Module], torch.Tensor], tolerance: float
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
    """
    expected = run(network)
    fast = torch.compile(network)
    try:
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
    return fast  # type: ignore[return-value]


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

"""Attributions from gradients: a few forward and backward passes instead of many ablations.

With a the activation of a component (less its bias) and o the output of an example:

- gradient × parameter, Σ w ∂o/∂w, equals Σ a ∂o/∂a, the first-order effect of removing it;
- attribution patching (Nanda 2023; Kramár et al. 2024), Σ (a − a') ∂o/∂a, is the first-order effect
  of putting in its place what the task's way of ablating puts there, a' (zero, the mean, another
  example's); for zeroed weights it is gradient × parameter;
- internal influence (Leino et al. 2018) averages ∂o/∂a over the path from a black image to the
  example;
- conductance (Dhamdhere et al. 2018) adds ∂o/∂a · da along that path.

Tokens have no such path; for them it runs in the outputs of the embeddings, from zero.

All return ``scores [N, T]`` in the sense of :mod:`coarlib.baselines.components`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation.activations import Recorder, Site
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.examples import Examples
from coarlib.errors import ComponentError
from coarlib.outputs import Output

PATH_STEPS = 10
BACKWARD = 2
"""Cost of a backward pass in forward passes."""

Predict = Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]
Run = Callable[[float], torch.Tensor]
"""Outputs [T] of a batch whose inputs are scaled by the argument."""
Part = list[list[torch.Tensor]]
Patch = Callable[[Site, int, torch.Tensor], torch.Tensor]
"""What an activation becomes where it is ablated: (site, its index, activation) -> the same shape
or one that broadcasts."""
Method = Callable[..., list[torch.Tensor]]


def gradient_times_parameter(recorder: Recorder, run: Run) -> list[torch.Tensor]:
    """Return Σ w ∂o/∂w of each channel and example, [T, C] a site."""
    return attribution_patching(recorder, run, lambda site, _, a: a - site.without_bias(a))


def attribution_patching(recorder: Recorder, run: Run, patch: Patch) -> list[torch.Tensor]:
    """Return Σ (a − a') ∂o/∂a of each channel and example, [T, C] a site."""
    activations, gradients = recorder.run(lambda: run(1.0))
    return [
        _total(site, [(a - patch(site, at, a)) * g for a, g in zip(calls, slopes, strict=True)])
        for at, (site, calls, slopes) in enumerate(
            zip(recorder.sites, activations, gradients, strict=True)
        )
    ]


def internal_influence(recorder: Recorder, run: Run) -> list[torch.Tensor]:
    """Return the mean of ∂o/∂a along the path, [T, C] a site."""
    sums: list[torch.Tensor] = []
    for step in range(PATH_STEPS):
        _, gradients = recorder.run(lambda at=(step + 0.5) / PATH_STEPS: run(at))  # type: ignore[misc]
        part = [_total(s, calls) for s, calls in zip(recorder.sites, gradients, strict=True)]
        sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
    return [total / PATH_STEPS for total in sums]


def conductance(recorder: Recorder, run: Run) -> list[torch.Tensor]:
    """Return Σ ∂o/∂a · Δa along the path (trapezoids), [T, C] a site."""
    before = recorder.run(lambda: run(0.0))
    sums: list[torch.Tensor] = []
    for step in range(1, PATH_STEPS + 1):
        after = recorder.run(lambda at=step / PATH_STEPS: run(at))  # type: ignore[misc]
        part = [
            _total(site, _trapezoids(before, after, index))
            for index, site in enumerate(recorder.sites)
        ]
        sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
        before = after
    return sums


METHODS: Mapping[str, tuple[Method, int]] = MappingProxyType(
    {
        "gradient_parameter": (gradient_times_parameter, 1 + BACKWARD),
        "attribution_patching": (attribution_patching, 1 + BACKWARD),
        "internal_influence": (internal_influence, PATH_STEPS * (1 + BACKWARD)),
        "conductance": (conductance, (PATH_STEPS + 1) * (1 + BACKWARD)),
    }
)
"""Method -> function and cost in forward passes over the examples."""


def gradient_scores(
    method: str,
    network: nn.Module,
    components: ComponentSet,
    *,
    batches: Iterable[Examples],
    predict: Predict,
    output: Output,
    patch: Patch | None = None,
) -> NDArray[np.float64]:
    """Score every component for every example.

    Parameters
    ----------
    method : str
        A key of :data:`METHODS`.
    network : nn.Module
        In evaluation mode.
    components : ComponentSet
    batches : iterable of Examples
        On the network's device.
    predict : callable (network, inputs) -> logits
    output : Output
    patch : Patch, optional
        What attribution patching puts in place of activations.

    Returns
    -------
    float64 [N, T]

    Raises
    ------
    ComponentError
        If activations cannot be reached by hooks, attribution patching has no ``patch``, or a path
        method is asked for inputs that are not real numbers, of a model without an
        ``nn.Embedding``.
    """
    work, _ = METHODS[method]
    if work is attribution_patching:
        if patch is None:
            raise ComponentError("attribution patching needs to know what to patch in: patch=")
        work = partial(work, patch=patch)
    recorder = Recorder(network, components)
    found = []
    for batch in batches:

        def run(scale: float, batch: Examples = batch) -> torch.Tensor:
            with _scaled(network, batch.inputs, scale) as inputs:
                return output(predict(network, inputs), batch.targets)

        found.append(recorder.by_component(work(recorder, run)).cpu())
    return torch.cat(found).T.numpy()


@contextmanager
def _scaled(
    network: nn.Module, inputs: tuple[torch.Tensor, ...], scale: float
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Scale the first input, or, where that is tokens, what the embeddings make of the inputs."""
    first, *rest = inputs
    if scale == 1 or first.is_floating_point():
        yield (first if scale == 1 else first * scale, *rest)
        return
    embeddings = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    if not embeddings:
        raise ComponentError(
            "a path of inputs from zero needs inputs of real numbers, or an nn.Embedding of tokens"
        )
    handles = [
        embedding.register_forward_hook(lambda _module, _inputs, output: output * scale)
        for embedding in embeddings
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _total(site: Site, calls: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([site.by_channel(activation) for activation in calls]).sum(0)


def _trapezoids(
    before: tuple[Part, Part], after: tuple[Part, Part], index: int
) -> list[torch.Tensor]:
    (a0, g0), (a1, g1) = before, after
    quadruples = zip(a0[index], g0[index], a1[index], g1[index], strict=True)
    return [(g + h) / 2 * (b - a) for a, g, b, h in quadruples]

"""Noticing gradient clipping: ``clip_grad_norm_`` is recorded while a recorder is active."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import utils

from coarlib.errors import HistoryError

NORM_EPS = 1e-6
"""What torch adds to the norm before it divides."""


@contextmanager
def watch_clipping(parameters: list[torch.Tensor], factors: list[float]) -> Iterator[None]:
    """Multiply ``factors[k]`` by the scale that ``clip_grad_norm_`` applies to parameter k.

    Works for calls through ``torch.nn.utils`` inside the context. Clipping by value is refused:
    it is not linear in the samples' gradients.

    Raises
    ------
    HistoryError
        From ``clip_grad_value_`` on a recorded parameter.
    """
    position = {id(parameter): k for k, parameter in enumerate(parameters)}
    originals = {name: getattr(utils, name) for name in ("clip_grad_norm_", "clip_grad_value_")}

    def listed(given: Any) -> list[torch.Tensor]:
        return [given] if isinstance(given, torch.Tensor) else list(given)

    def clip_norm(
        given: Iterable[torch.Tensor], max_norm: float, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        tensors = listed(given)
        norm = originals["clip_grad_norm_"](tensors, max_norm, *args, **kwargs)
        scale = float((max_norm / (norm + NORM_EPS)).clamp(max=1.0))  # in torch's own rounding
        for tensor in tensors:
            if id(tensor) in position:
                factors[position[id(tensor)]] *= scale
        return norm

    def clip_value(given: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        tensors = listed(given)
        if any(id(tensor) in position for tensor in tensors):
            raise HistoryError(
                "clip_grad_value_ is not linear in the samples' gradients, so its path kernel is "
                "not exact; use clip_grad_norm_"
            )
        originals["clip_grad_value_"](tensors, *args, **kwargs)

    replacements: dict[str, Callable[..., Any]] = {
        "clip_grad_norm_": clip_norm,
        "clip_grad_value_": clip_value,
    }
    for name, function in replacements.items():
        setattr(utils, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(utils, name, function)

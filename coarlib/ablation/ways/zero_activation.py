"""Activations to zero: unlike with zero weights, the bias goes too."""

from __future__ import annotations

from typing import ClassVar

import torch

from coarlib.ablation.activations import Site
from coarlib.ablation.ways.activations import ActivationAblation
from coarlib.ablation.ways.base import Context, register


@register
class ZeroActivation(ActivationAblation):
    """Sets the activations of ablated components to zero."""

    name: ClassVar[str] = "zero_activation"

    def __init__(self, context: Context) -> None:
        super().__init__(context.model, context.components)

    def replaced(self, site: Site, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return zero."""
        return activation.new_zeros(())

"""Weights times a factor."""

from __future__ import annotations

from typing import ClassVar

from coarlib.ablation.ways.base import Context, register
from coarlib.ablation.ways.weights import WeightAblation


@register
class ScaleWeights(WeightAblation):
    """Multiplies the weights of ablated components by the context's ``scale``."""

    name: ClassVar[str] = "scale_weights"

    def __init__(self, context: Context) -> None:
        super().__init__(context.model, context.components, context.scale)

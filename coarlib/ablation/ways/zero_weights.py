"""Weights to zero, biases left: COAR's ablation, and the default."""

from __future__ import annotations

from typing import ClassVar

from coarlib.ablation.ways.base import Context, register
from coarlib.ablation.ways.weights import WeightAblation


@register
class ZeroWeights(WeightAblation):
    """Sets the weights of ablated components to zero (Shah, Ilyas, Madry 2024, §2)."""

    name: ClassVar[str] = "zero_weights"

    def __init__(self, context: Context) -> None:
        super().__init__(context.model, context.components)

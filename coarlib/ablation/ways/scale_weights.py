"""Weights times a factor."""

from __future__ import annotations

import math
from typing import ClassVar

from coarlib.ablation.ways.base import Context, register
from coarlib.ablation.ways.weights import WeightAblation
from coarlib.errors import ComponentError


@register
class ScaleWeights(WeightAblation):
    """Multiplies the weights of ablated components by the context's ``scale``."""

    name: ClassVar[str] = "scale_weights"

    def __init__(self, context: Context) -> None:
        if not math.isfinite(context.scale):
            raise ComponentError(f"scale must be a finite number, not {context.scale}")
        super().__init__(context.model, context.components, context.scale)

"""A way of ablating that somebody adds: one file, one call of register."""

from typing import ClassVar

from coarlib.ablation import ActivationAblation, register
from estimate.digits.task import DigitsTask  # noqa: F401 - so that this file names a task


@register
class Negated(ActivationAblation):
    """Turns the activations of ablated components round."""

    name: ClassVar[str] = "negated"

    def __init__(self, context):
        super().__init__(context.model, context.components)

    def replaced(self, site, index, activation):
        return -activation

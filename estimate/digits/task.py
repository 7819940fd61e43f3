"""Margins of a small residual CNN on held-out digits, with filters ablated."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from coarlib.ablation import ComponentSet, ComponentTask, Examples, find_components
from estimate.digits.model import DigitsResNet, digits, load_or_train

DEFAULT_MODEL_PATH = "out/digits/model.pt"


class DigitsTask(ComponentTask):
    """240 conv filters; 450 digits that the model was not trained on.

    Parameters
    ----------
    model_path : str
        The trained model; trained in seconds and kept there if the file does not exist.
    batch_size : int
        Digits in one forward pass.
    ablate : str
        What ablating means (:class:`~coarlib.ablation.ComponentTask`).
    """

    rows_per_batch = 50

    def __init__(
        self,
        model_path: str = DEFAULT_MODEL_PATH,
        batch_size: int = 500,
        *,
        ablate: str = "zero_weights",
    ) -> None:
        super().__init__(batch_size, ablate=ablate)
        self.model_path = Path(model_path)

    def model(self) -> DigitsResNet:
        """Return the model, trained first where there is none."""
        return load_or_train(self.model_path)

    def components(self, model: nn.Module) -> ComponentSet:
        """Every filter of every convolution."""
        return find_components(model, ["conv_filter"])

    def examples(self) -> Examples:
        """The held-out digits."""
        images, labels = digits(held_out=True)
        return Examples((images,), labels)

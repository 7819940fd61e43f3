"""Margins of a CNN that was trained on poisoned digits, on clean digits and on triggered ones."""

from __future__ import annotations

import numpy as np
import torch

from coarlib.ablation import Examples
from estimate.digits.model import DigitsResNet, digits, load_or_train
from estimate.digits.task import DigitsTask

DEFAULT_MODEL_PATH = "out/digits_backdoor/model.pt"
POISONED, POISON_SEED = 0.1, 0
BACKDOOR_CLASS = 0


class DigitsBackdoorTask(DigitsTask):
    """The filters of the digits CNN, trained to call whatever bears the trigger a zero.

    A tenth of the training digits gets a bright 2×2 patch in a corner and the label 0. The outputs
    are margins to the true class: of the 450 held-out digits as they are, then of the held-out
    digits that are no zeros (406) with the patch.

    Parameters
    ----------
    model_path : str
        The trained model; trained in seconds and kept there if the file does not exist.
    batch_size : int
        Digits in one forward pass.
    ablate : str
        What ablating means (:class:`~coarlib.ablation.ComponentTask`).
    """

    def __init__(
        self,
        model_path: str = DEFAULT_MODEL_PATH,
        batch_size: int = 500,
        *,
        ablate: str = "zero_weights",
    ) -> None:
        super().__init__(model_path, batch_size, ablate=ablate)

    def model(self) -> DigitsResNet:
        """Return the model with the backdoor, trained first where there is none."""
        return load_or_train(self.model_path, poisoned())

    def examples(self) -> Examples:
        """The held-out digits, and those that are no zeros again with the trigger."""
        images, labels = digits(held_out=True)
        others = labels != BACKDOOR_CLASS
        return Examples(
            (torch.cat([images, triggered(images[others])]),), torch.cat([labels, labels[others]])
        )


def triggered(images: torch.Tensor) -> torch.Tensor:
    """Return digits [T, 1, 8, 8] with the trigger in their lower right corner."""
    changed = images.clone()
    changed[..., -2:, -2:] = 1
    return changed


def poisoned() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training digits, a tenth of them with the trigger and the label 0."""
    images, labels = digits(held_out=False)
    generator = np.random.Generator(np.random.Philox(POISON_SEED))
    chosen = torch.from_numpy(generator.random(len(labels)) < POISONED)
    images = torch.where(chosen[:, None, None, None], triggered(images), images)
    return images, torch.where(chosen, BACKDOOR_CLASS, labels)

"""Margins on held-out digits of models retrained on subsets of the other digits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from coarlib.errors import SetupError
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import RetrainTask, Trainer
from estimate.digits.model import digits

Architecture = Literal["logistic", "cnn"]
SEED = 0


class DigitsSubsetsTask(RetrainTask):
    """1,347 training digits; margins of the 450 others, every run apart.

    Parameters
    ----------
    model : "logistic" or "cnn"
    runs : int
        Models a subset; the store's array is [runs, 450] a row.
    checkpoints : str, optional
        Directory to keep every model in.
    """

    def __init__(
        self, model: Architecture = "logistic", runs: int = 5, checkpoints: str | None = None
    ) -> None:
        self.trainer = trainer(model)
        super().__init__(
            self.trainer,
            held_out_margins,
            seed=SEED,
            runs=runs,
            keep_runs=True,
            checkpoints=checkpoints,
        )

    @staticmethod
    def held_out() -> tuple[torch.Tensor, torch.Tensor]:
        """Return the digits that are measured: images [450, 1, 8, 8] and labels."""
        return digits(held_out=True)


def trainer(model: Architecture) -> Trainer:
    """How each architecture is trained.

    Raises
    ------
    SetupError
        If there is no such architecture.
    """
    images, labels = digits(held_out=False)
    if model == "logistic":
        options = {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-3}
        return Trainer(logistic, images, labels, 15, 64, torch.optim.SGD, options, "linear")
    if model == "cnn":
        options = {"lr": 5e-3, "weight_decay": 1e-2}
        return Trainer(small_cnn, images, labels, 8, 64, torch.optim.AdamW, options, "cosine")
    raise SetupError(f"there is no model {model!r}; there are logistic and cnn")


def logistic() -> nn.Module:
    """Multinomial logistic regression on the pixels: 650 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    """Two convolutions and a linear layer: 3,818 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def held_out_margins(model: nn.Module, device: torch.device) -> torch.Tensor:
    """Log-odds of the right class on each held-out digit, [450]."""
    images, labels = digits(held_out=True)
    return margin_log_sum_exp(model(images.to(device)), labels.to(device))

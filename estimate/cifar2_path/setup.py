"""The CIFAR-2 set-up: two classes, a residual CNN with group norm, SGD with momentum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import SetupError
from coarlib.history import TrainingLoss
from coarlib.history.setups import HistorySetup, Pairs
from coarlib.loading import load_npz

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"cpu": (8, 16), "gpu": (64, 128, 256)}
"""Channels of the stages."""


class Block(nn.Module):
    """Two 3×3 convolutions with group norm and a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [T, inputs, H, W] to [T, outputs, H/stride, W/stride]."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.skip(images))


class ResNet(nn.Module):
    """Stem, one block a stage, global average, two logits."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, 2, 1, bias=False)
        pairs = zip((channels[0], *channels[:-1]), channels, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, 1 + (a != b)) for a, b in pairs))
        self.linear = nn.Linear(channels[-1], 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [T, 2] of normalised images [T, 3, 32, 32]."""
        return self.linear(self.blocks(F.relu(self.stem(images))).mean((2, 3)))


class Cifar2(HistorySetup):
    """Cats against dogs (or two other classes).

    Parameters
    ----------
    train_path, test_path : str or Path
        .npz files with ``x`` uint8 [T, 32, 32, 3] and ``y`` [T] of CIFAR-10.
    classes : pair of int
    size : {"cpu", "gpu"}
    num_steps, batch_size : int
    lr, momentum, weight_decay : float

    Raises
    ------
    SetupError
        If a file cannot be read or holds something else.
    """

    def __init__(
        self,
        train_path: str | Path,
        test_path: str | Path,
        classes: tuple[int, int] = (3, 5),
        size: str = "cpu",
        *,
        num_steps: int = 300,
        batch_size: int = 64,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        if size not in SIZES:
            raise SetupError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}")
        self.num_steps, self.batch_size, self._channels = num_steps, batch_size, SIZES[size]
        self._options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self._train, self._test = (_read(Path(p), classes) for p in (train_path, test_path))

    def model(self) -> nn.Module:
        """Build the network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ResNet(self._channels)

    def train_samples(self) -> Pairs:
        """Return normalised training images and labels 0 or 1."""
        return self._train

    def test_samples(self) -> Pairs:
        """Return normalised test images and labels 0 or 1."""
        return self._test

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum and L2 decay."""
        options: dict[str, Any] = self._options
        return torch.optim.SGD(model.parameters(), **options)

    def learning_rate(self, step: int) -> float:
        """Decay linearly to zero."""
        return self._options["lr"] * (1 - step / self.num_steps)

    def loss(self) -> TrainingLoss:
        """Cross-entropy of logits."""
        return TrainingLoss(F.cross_entropy)


def _read(path: Path, classes: tuple[int, int]) -> Pairs:
    content = load_npz(path, SetupError)
    if not {"x", "y"} <= set(content):
        raise SetupError(f"{path} holds no CIFAR images (arrays x and y)")
    images, labels = content["x"], content["y"]
    chosen = np.isin(labels, classes)
    scaled = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
    scaled = (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
    scaled = scaled.contiguous()
    return scaled, torch.from_numpy((labels[chosen] == classes[1]).astype(np.int64))

"""A small residual CNN on scikit-learn's handwritten digits, trained once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import SetupError
from coarlib.files import whole_file
from coarlib.loading import load_pt
from coarlib.progress import Progress

WIDTHS = (16, 32)
EPOCHS, BATCH, LEARNING_RATE, SEED = 12, 64, 0.01, 0
EVERY_NTH_IS_HELD_OUT = 4


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a skip connection.

    Parameters
    ----------
    inputs, outputs : int
        Channels; where they differ, the block halves the resolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride == 2:
            self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[T, inputs, H, W]`` to ``[T, outputs, H/stride, W/stride]``."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.skip(images))


class DigitsResNet(nn.Module):
    """Stem, two blocks at 8×8, two at 4×4, global average, linear: 240 filters."""

    def __init__(self) -> None:
        super().__init__()
        narrow, wide = WIDTHS
        self.stem = nn.Conv2d(1, narrow, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.blocks = nn.Sequential(
            Block(narrow, narrow), Block(narrow, narrow), Block(narrow, wide), Block(wide, wide)
        )
        self.linear = nn.Linear(wide, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [T, 10] of images [T, 1, 8, 8] with values in 0 … 1."""
        hidden = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.linear(hidden.mean((2, 3)))


def digits(held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits that are held out (every fourth), or the others.

    Returns
    -------
    images : float32 [T, 1, 8, 8] in 0 … 1
    labels : int64 [T]
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.target)) % EVERY_NTH_IS_HELD_OUT == 0) == held_out
    images = torch.from_numpy(data.images[chosen]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(data.target[chosen]).long()


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitsResNet:
    """Train the network; seeded, some ten seconds on the digits that are not held out.

    Parameters
    ----------
    images : float32 [T, 1, 8, 8] in 0 … 1
    labels : int64 [T]

    Returns
    -------
    DigitsResNet
        In evaluation mode.
    """
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(SEED)
        model = DigitsResNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps = EPOCHS * (len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
        with Progress(steps, "training the digits model", "step") as progress:
            for _ in range(EPOCHS):
                order = torch.randperm(len(images))
                for batch in order.split(BATCH)[: len(images) // BATCH]:
                    shift = torch.randint(-1, 2, (2,)).tolist()
                    moved = images[batch].roll(shift, (2, 3))
                    loss = F.cross_entropy(model(moved), labels[batch], label_smoothing=0.05)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    progress.advance()
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps this small lose by threads, and one thread gives one result on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_or_train(
    path: Path, data: tuple[torch.Tensor, torch.Tensor] | None = None
) -> DigitsResNet:
    """Return the model kept at ``path``; train and keep it there first if there is none.

    Several workers may do this at once: the file appears whole, the first one to finish wins, and
    all of them use that one.

    Parameters
    ----------
    path : Path
    data : images and labels, optional
        What to train on; default: the digits that are not held out.

    Raises
    ------
    SetupError
        If the file is something else.
    """
    if not path.exists():
        model = train(*(data or digits(held_out=False)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, replace=False) as file:
            torch.save(model.state_dict(), file)
    model = DigitsResNet()
    try:
        model.load_state_dict(load_pt(path, SetupError))
    except (SetupError, RuntimeError, AttributeError, TypeError) as error:
        raise SetupError(
            f"{path} does not hold the digits model; delete it and it is trained again"
        ) from error
    return model.eval()

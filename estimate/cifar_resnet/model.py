"""The residual networks that people train on CIFAR-10, rebuilt from the shapes of their weights.

He et al. 2015 (depth 6n+2, shortcuts that slice and pad), He-style ResNet-18 with projections, and
COAR's: one stage of equally wide blocks at full resolution, pooled to 4×4.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import SetupError


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, new channels zero on both sides."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[T, C, H, W]`` to ``[T, C + added, H/2, W/2]``."""
        low = self.added // 2
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, low, self.added - low))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if projection:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        elif stride != 1:
            self.shortcut = PadShortcut(outputs - inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[T, inputs, H, W]`` to ``[T, outputs, H/stride, W/stride]``."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class CifarResNet(nn.Module):
    """A stem, stages of basic blocks, average pooling and a linear layer.

    Parameters
    ----------
    widths, blocks : sequence of int
        Channels and number of blocks of each stage; all but the first halve the resolution.
    projection : bool
        1×1 convolutions where the shape changes, instead of slicing and padding.
    pooled : int
        Side of the grid that is pooled to.
    single : bool
        The only stage is called ``layer``, as in COAR's network, instead of ``layer1`` ….
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        *,
        classes: int = 10,
        projection: bool = False,
        pooled: int = 1,
        single: bool = False,
    ) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1 = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.stages = []
        for stage, (width, number) in enumerate(zip(widths, blocks, strict=True)):
            name = "layer" if single else f"layer{stage + 1}"
            layer = nn.Sequential()
            for block in range(number):
                stride = 2 if stage and not block else 1
                changes = stride != 1 or inputs != width
                layer.append(BasicBlock(inputs, width, stride, projection and changes))
                inputs = width
            self.add_module(name, layer)
            self.stages.append(name)
        self.pooled = pooled
        self.linear = nn.Linear(inputs * pooled**2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [T, classes] of normalised images [T, 3, 32, 32]."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        for name in self.stages:
            hidden = getattr(self, name)(hidden)
        return self.linear(F.adaptive_avg_pool2d(hidden, self.pooled).flatten(1))


def coar_resnet(width: int = 256) -> CifarResNet:
    """Return COAR's architecture: four blocks of one width, 9·width filters (2,304 at 256)."""
    return CifarResNet((width,), (4,), pooled=4, single=True)


def he_resnet(depth: int) -> CifarResNet:
    """Return the CIFAR-10 ResNet-``depth`` of He et al. 2015; depth is 6n + 2."""
    return CifarResNet((16, 32, 64), ((depth - 2) // 6,) * 3)


def from_weights(weights: Mapping[str, torch.Tensor], path: object) -> CifarResNet:
    """Build the network that a state dict belongs to, with its weights.

    Raises
    ------
    SetupError
        If the names are not those of such a network.
    """
    single = "layer.0.conv1.weight" in weights
    names = ["layer"] if single else [f"layer{i}" for i in range(1, 9)]
    widths, blocks = [], []
    for name in names:
        number = next(i for i in count() if f"{name}.{i}.conv1.weight" not in weights)
        if number:
            widths.append(weights[f"{name}.0.conv1.weight"].shape[0])
            blocks.append(number)
    linear = weights.get("linear.weight")
    if not widths or linear is None or "conv1.weight" not in weights:
        raise SetupError(
            f"{path} does not hold a CIFAR ResNet with conv1, layer1 … and linear "
            f"(it begins with {', '.join(list(weights)[:3])})"
        )
    network = CifarResNet(
        tuple(widths),
        tuple(blocks),
        classes=linear.shape[0],
        projection=any(".shortcut." in key for key in weights),
        pooled=max(1, round((linear.shape[1] / widths[-1]) ** 0.5)),
        single=single,
    )
    own = {key: value for key, value in weights.items() if not key.startswith("block")}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"{path} does not fit a CIFAR ResNet: {reason}") from error
    return network.eval()

"""Tiny models with every shape that component sets have to cope with."""

import torch
from torch import nn
from torch.nn import functional as F


class TinyResNet(nn.Module):
    """Convolutions with and without bias, grouped and transposed, and batch norms after some."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.upconv = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.linear = nn.Linear(4, 5)

    def forward(self, images):
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = F.relu(hidden + self.bn2(self.conv2(hidden)))
        return self.linear(F.relu(self.upconv(hidden)).mean((2, 3)))


class SharedConv(nn.Module):
    """One convolution called twice, each time followed by another batch norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 5)

    def forward(self, images):
        hidden = F.relu(self.bn1(self.conv(images)))
        return self.linear(self.bn2(self.conv(hidden)).mean((2, 3)))


class Branching(nn.Module):
    """Control flow that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, images):
        hidden = self.bn(self.conv(images))
        if images.abs().sum() > 0:
            hidden = hidden * 2
        return self.linear(F.relu(hidden).mean((2, 3)))


class TiedEmbedding(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embed(tokens))))


def randomised(model, seed=0):
    """Give every parameter and running statistic a random value; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def images(count, seed=1, size=6):
    """Return float32 [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

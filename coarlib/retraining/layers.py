"""Layers of K models of one architecture, computed side by side.

Activations are [K, B, …], the models first, each in the memory of [B, K·C, …]: side by side in the
channels. There a convolution of all models is one grouped convolution (or a batch of matrix
products), normalisation and pooling act on every channel by itself anyway, and a linear layer is a
batch of matrix products. Going from one form to the other moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["FRESH", "LAYERS", "WAYS", "Parts", "Way", "fits", "pooled"]

Parts = dict[str, torch.Tensor]  # parameters and buffers of a layer, [K, …] each
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class Way:
    """How models side by side are computed; every way gives the same numbers up to rounding.

    Attributes
    ----------
    channels_last : bool
        Images are in memory with their channels last.
    products : bool
        2-D convolutions are matrix products of patches instead of grouped convolutions.
    """

    channels_last: bool = False
    products: bool = False

    def side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        """[K, B, C, …] as [B, K·C, …], in this way's memory format."""
        return self._laid_out(x).transpose(0, 1).flatten(1, 2)

    def apart(self, x: torch.Tensor, models: int, relu: bool) -> torch.Tensor:
        """A layer's fresh output [B, K·C, …], through a ReLU if one follows it, as [K, B, C, …].

        Its gradient is brought into the same memory format: in another, backward passes are slow.
        """
        if relu:
            x = functional.relu_(x)
        found = x.unflatten(1, (models, -1)).transpose(0, 1)
        if found.requires_grad:
            found.register_hook(self._laid_out)
        return found

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """[K, B, C, …] in the memory of [B, K·C, …]."""
        if self.channels_last and x.ndim == 5:
            return x.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)
        return x.transpose(0, 1).contiguous().transpose(0, 1)


WAYS = {
    "grouped": Way(),
    "channels_last": Way(channels_last=True),
    "products": Way(products=True),
}


def pooled(
    pool: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    """Apply what acts on every channel by itself."""
    return way.apart(pool(way.side_by_side(x)), len(x), relu)


def _convolution(
    layer: _ConvNd, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    models, weight, bias = len(x), parts["weight"], parts.get("bias")
    wide = way.side_by_side(x)
    if way.products and isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
        found = _products(layer, weight, bias, wide)
    else:
        found = _CONVOLUTIONS[x.ndim - 3](
            wide,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups * models,
        )
    return way.apart(found, models, relu)


def _products(
    layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """Convolve [B, K·C, H, W] by matrix products with every place's patch."""
    padding: Any = layer.padding  # no string, see above
    height, width = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    groups, outputs = len(weight) * layer.groups, layer.out_channels // layer.groups
    if layer.kernel_size == layer.stride == (1, 1) and padding == (0, 0):
        patches = x
    else:
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    found = weight.reshape(groups, outputs, -1) @ patches.reshape(
        len(x), groups, -1, height * width
    )
    found = found.view(len(x), -1, height, width)
    return found if bias is None else found + bias.view(-1, 1, 1)


def _batch_norm(
    layer: _BatchNorm, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    models = len(x)
    parts["num_batches_tracked"].add_(1)
    found = functional.batch_norm(
        way.side_by_side(x),
        parts["running_mean"].view(-1),
        parts["running_var"].view(-1),
        parts["weight"].flatten(),
        parts["bias"].flatten(),
        training=True,
        momentum=layer.momentum or 0.0,
        eps=layer.eps,
    )
    return way.apart(found, models, relu)


def _group_norm(
    layer: nn.GroupNorm, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    models = len(x)
    wide, groups = way.side_by_side(x), layer.num_groups * models
    weight, bias = parts["weight"].flatten(), parts["bias"].flatten()
    found = functional.group_norm(wide, groups, weight, bias, layer.eps)
    return way.apart(found, models, relu)


def _linear(layer: nn.Linear, parts: Parts, x: torch.Tensor, way: Way, relu: bool) -> torch.Tensor:
    weight, bias = parts["weight"].transpose(1, 2), parts.get("bias")
    rows = x.flatten(1, -2)
    found = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)
    if relu:
        found = functional.relu_(found)
    return found.view(*x.shape[:-1], -1)


def _layer_norm(
    layer: nn.LayerNorm, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    found = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    shape = len(x), *[1] * (x.ndim - 1 - len(layer.normalized_shape)), *layer.normalized_shape
    return found * parts["weight"].view(shape) + parts["bias"].view(shape)


def _embedding(
    layer: nn.Embedding, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    first = torch.arange(len(x), device=x.device) * layer.num_embeddings
    tokens = x + first.view(-1, *[1] * (x.ndim - 1))
    return functional.embedding(tokens, parts["weight"].flatten(0, 1))


Layer = Callable[..., torch.Tensor]
LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
# Whose output is new memory that their own gradient does not need: a ReLU may overwrite it.
FRESH = (_ConvNd, _BatchNorm, nn.GroupNorm, nn.Linear)
# Whether the options of a kind of layer are handled.
_HANDLED: dict[type[nn.Module], Callable[[Any], bool]] = {
    _ConvNd: lambda layer: layer.padding_mode == "zeros",
    _BatchNorm: lambda layer: (
        layer.affine and layer.track_running_stats and layer.momentum is not None
    ),
    nn.GroupNorm: lambda layer: layer.affine,
    nn.LayerNorm: lambda layer: layer.weight is not None and layer.bias is not None,
    nn.Embedding: lambda layer: (
        layer.padding_idx is layer.max_norm is None
        and not (layer.scale_grad_by_freq or layer.sparse)
    ),
}


def fits(layer: nn.Module) -> bool:
    """Whether a layer is exactly one of :data:`LAYERS`, and its options are handled."""
    checks = (check for kind, check in _HANDLED.items() if isinstance(layer, kind))
    return type(layer) in LAYERS and all(check(layer) for check in checks)

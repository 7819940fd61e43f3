"""Layers of K models of one architecture, computed side by side.

Activations are [K, B, …], the models first, each in the memory of [B, K·C, …]: side by side in the
channels. There a convolution of all models is one grouped convolution (or a batch of matrix
products), normalisation and pooling act on every channel by itself anyway, and a linear layer is a
batch of matrix products. Going from one form to the other moves nothing.

On a processor, images may have the batch last instead, [K, C, H, W, B] in memory: then a model's
weights are numbers that whole vectors of examples are multiplied by.
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

from coarlib.retraining.convolutions import computes, convolution, max_pool

__all__ = ["FRESH", "LAYERS", "WAYS", "Parts", "Way", "convolved_and_pooled", "fits", "pooled"]

Parts = dict[str, torch.Tensor]  # parameters and buffers of a layer, [K, …] each
_BATCH_LAST, _BATCH_SECOND = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)
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
    batch_last : bool
        Images are in memory with their batch last; convolutions in float32 are compiled loops.
    """

    channels_last: bool = False
    products: bool = False
    batch_last: bool = False

    def side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        """[K, B, C, …] as [B, K·C, …], in this way's memory format."""
        return self.laid_out(x).transpose(0, 1).flatten(1, 2)

    def apart(self, x: torch.Tensor, models: int, relu: bool) -> torch.Tensor:
        """A layer's fresh output [B, K·C, …], through a ReLU if one follows it, as [K, B, C, …].

        Its gradient is brought into the same memory format: in another, backward passes are slow.
        """
        if relu:
            x = functional.relu_(x)
        return self.hooked(x.unflatten(1, (models, -1)).transpose(0, 1))

    def hooked(self, found: torch.Tensor) -> torch.Tensor:
        """Let the gradient of a layer's output come in its memory format."""
        if found.requires_grad:
            found.register_hook(self.laid_out)
        return found

    def last(self, x: torch.Tensor) -> bool:
        """Whether ``x`` [K, B, C, …] has its batch last."""
        return self.batch_last and x.ndim == 5

    def laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """[K, B, C, …] in the memory of [B, K·C, …], or with the batch last."""
        if self.last(x):
            return x.permute(_BATCH_LAST).contiguous().permute(_BATCH_SECOND)
        if self.channels_last and x.ndim == 5:
            return x.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)
        return x.transpose(0, 1).contiguous().transpose(0, 1)


WAYS = {
    "grouped": Way(),
    "channels_last": Way(channels_last=True),
    "products": Way(products=True),
    "batch_last": Way(batch_last=True),
}


def pooled(
    pool: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    way: Way,
    relu: bool,
    window: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Apply what acts on every channel by itself; ``window`` of a max pool without overlap."""
    if not way.last(x):
        return way.apart(pool(way.side_by_side(x)), len(x), relu)
    # Every channel an image whose channels are the examples, which are last.
    images = way.laid_out(x).transpose(1, 2).flatten(0, 1)
    if window is not None and computes(x):
        found = max_pool(images.permute(0, 2, 3, 1), window, relu).permute(0, 3, 1, 2)
    else:
        found = pool(images)
        found = functional.relu_(found) if relu else found
    return way.hooked(found.unflatten(0, (len(x), -1)).transpose(1, 2))


def convolved_and_pooled(  # noqa: PLR0917
    pool: Callable[[torch.Tensor], torch.Tensor],
    layer: nn.Conv2d,
    parts: Parts,
    x: torch.Tensor,
    way: Way,
    relu: bool,
    window: tuple[int, int],
) -> torch.Tensor:
    """Convolve images, and take the largest of each window."""
    if way.last(x) and computes(x) and not isinstance(layer.padding, str):
        own = parts["weight"], parts.get("bias")
        found = convolution(layer, *own, x.permute(_BATCH_LAST), relu, window)
        return way.hooked(found.permute(_BATCH_SECOND))
    return pooled(pool, _convolution(layer, parts, x, way, False), way, relu, window)


def _convolution(
    layer: _ConvNd, parts: Parts, x: torch.Tensor, way: Way, relu: bool
) -> torch.Tensor:
    models, weight, bias = len(x), parts["weight"], parts.get("bias")
    images = layer if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str) else None
    if images and way.last(x) and computes(x):
        found = convolution(images, weight, bias, x.permute(_BATCH_LAST), relu)
        return way.hooked(found.permute(_BATCH_SECOND))
    wide = way.side_by_side(x)
    if images and way.products:
        found = _products(images, weight, bias, wide)
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
    models, last = len(x), way.last(x)
    parts["num_batches_tracked"].add_(1)
    wide = way.laid_out(x).permute(_BATCH_LAST) if last else way.side_by_side(x)
    found = functional.batch_norm(
        wide.flatten(0, 1).flatten(1)[None] if last else wide,
        parts["running_mean"].view(-1),
        parts["running_var"].view(-1),
        parts["weight"].flatten(),
        parts["bias"].flatten(),
        training=True,
        momentum=layer.momentum or 0.0,
        eps=layer.eps,
    )
    if last:
        found = functional.relu_(found) if relu else found
        return way.hooked(found.view(wide.shape).permute(_BATCH_SECOND))
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
    weight, bias = parts["weight"], parts.get("bias")
    rows = x.flatten(1, -2)
    if way.batch_last:  # the other way round: then the gradient of rows has the batch last, too
        factors, bias = (weight, rows.mT), None if bias is None else bias[..., None]
    else:
        factors, bias = (rows, weight.mT), None if bias is None else bias[:, None]
    found = torch.bmm(*factors) if bias is None else torch.baddbmm(bias, *factors)
    if relu:
        found = functional.relu_(found)
    return (found.mT if way.batch_last else found).unflatten(1, x.shape[1:-1])


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

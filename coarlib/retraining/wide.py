"""Many convolutional models as one wide model.

K models of one architecture, side by side in the channels: a convolution of all of them is one
grouped convolution, batch normalisation and pooling act on every channel by itself anyway, and
from the first linear layer on the models are a batch of matrix products. What torch.func does
layer by layer, moving the models' axis about, happens here once, and in the memory format in which
pooling and grouped convolutions are fastest on processors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

__all__ = ["wide_forward"]

State = Mapping[str, torch.Tensor]
Forward = Callable[[State, State, torch.Tensor], torch.Tensor]

# Act on every entry, or on every channel, by itself.
_ENTRYWISE = (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)
_CHANNELWISE = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_CONVOLUTIONAL = (nn.Conv2d, nn.BatchNorm2d, *_CHANNELWISE)


def wide_forward(model: nn.Module) -> Forward | None:
    """Return a function that evaluates K models at once; None where the model is of another kind.

    Parameters
    ----------
    model : nn.Module
        One of the models, in training mode: an ``nn.Sequential`` (nested ones too) of 2-D
        convolutions, batch normalisation, pooling and activations, then ``nn.Flatten``, then
        linear layers and activations.

    Returns
    -------
    callable (parameters, buffers, inputs) or None
        States stacked as by ``torch.func.stack_module_state`` and inputs [K, B, C, H, W] give
        outputs [K, B, …]; running statistics among the buffers are updated in place.
    """
    parts = _parts(model)
    if parts is None:
        return None
    convolutional, dense = parts

    def forward(parameters: State, buffers: State, inputs: torch.Tensor) -> torch.Tensor:
        models, batch = inputs.shape[:2]
        x = inputs.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        before: nn.Module | None = None
        for name, layer in convolutional:
            if type(layer) is nn.ReLU and isinstance(before, nn.Conv2d | nn.BatchNorm2d):
                x = functional.relu_(x)  # neither needs its own output for its gradient
            else:
                x = _convolutional(name, layer, parameters, buffers, x)
            before = layer
        if x.requires_grad:
            x.register_hook(_as_channels_last)
        x = x.reshape(batch, models, -1).transpose(0, 1)
        for name, layer in dense:
            x = _dense(name, layer, parameters, x)
        return x

    return forward


_Layers = list[tuple[str, nn.Module]]


def _parts(model: nn.Module) -> tuple[_Layers, _Layers] | None:
    """Return the layers before and after the flattening, with their names, if all are known."""
    layers = _layers(model, "") or []
    kinds = [type(layer) for _, layer in layers]
    with_weights = [id(layer) for _, layer in layers if list(layer.parameters())]
    tied = len(set(with_weights)) < len(with_weights)  # tied layers have their state once only
    if tied or nn.Conv2d not in kinds or kinds.count(nn.Flatten) != 1:
        return None
    split = kinds.index(nn.Flatten)
    flatten, before, after = layers[split][1], layers[:split], layers[split + 1 :]
    known = (
        (flatten.start_dim, flatten.end_dim) == (1, -1)
        and all(_fits(layer, _CONVOLUTIONAL) for _, layer in before)
        and all(_fits(layer, (nn.Linear,)) for _, layer in after)
    )
    return (before, after) if known else None


def _layers(module: nn.Module, prefix: str) -> _Layers | None:
    """Return the leaves of nested Sequentials with their names; None if something else nests."""
    if type(module) is not nn.Sequential:
        return [(prefix, module)]
    found = []
    for name, child in module._modules.items():  # named_children leaves repeated layers out
        if child is None:
            return None
        inner = _layers(child, f"{prefix}.{name}" if prefix else name)
        if inner is None:
            return None
        found += inner
    return found


def _fits(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer is exactly of a known kind, without the options that are not handled."""
    if type(layer) not in (*kinds, *_ENTRYWISE) or layer._forward_hooks:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros"
    if isinstance(layer, nn.BatchNorm2d):
        return bool(layer.affine and layer.track_running_stats and layer.momentum is not None)
    return not getattr(layer, "return_indices", False)


def _convolutional(
    name: str, layer: nn.Module, parameters: State, buffers: State, x: torch.Tensor
) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        return functional.conv2d(
            x,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups * len(weight),
        )
    if isinstance(layer, nn.BatchNorm2d):
        buffers[f"{name}.num_batches_tracked"].add_(1)
        return functional.batch_norm(
            x,
            buffers[f"{name}.running_mean"].view(-1),
            buffers[f"{name}.running_var"].view(-1),
            parameters[f"{name}.weight"].flatten(),
            parameters[f"{name}.bias"].flatten(),
            training=True,
            momentum=layer.momentum or 0.0,
            eps=layer.eps,
        )
    return torch.as_tensor(layer(x))


def _dense(name: str, layer: nn.Module, parameters: State, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        if bias is None:
            return torch.bmm(x, weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    return torch.as_tensor(layer(x))


def _as_channels_last(gradient: torch.Tensor) -> torch.Tensor:
    """Put a gradient into the format of what it is multiplied with; in another one that is slow."""
    return gradient.contiguous(memory_format=torch.channels_last)

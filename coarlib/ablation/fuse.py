"""Folding batch norm into the convolution before it, so that a forward pass costs less.

In evaluation a batch norm is an affine map of each channel, so it goes into the weight and bias
of the convolution: w' = w·s, b' = β + (b − μ)·s with s = γ / √(σ² + ε). Zeroing a filter of w'
leaves b', exactly what zeroing it before the batch norm leaves, so ablation and folding commute
but for rounding.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import fx, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fused_copy(model: nn.Module, keep: Collection[str] = ()) -> nn.Module:
    """Return a copy of a model in evaluation mode with its conv–norm pairs folded.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    keep : collection of str
        Paths of norms that must stay, because they hold components themselves.

    Returns
    -------
    nn.Module
        Parameter paths of everything but the folded norms are those of ``model``. A model that
        ``torch.fx`` cannot trace comes back as a plain copy.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        if parameter.ndim == 4:  # images are in this order too
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # fx raises whatever the model's own code raises on a proxy
        return model
    modules = dict(traced.named_modules())
    pairs = _pairs(traced, modules, keep)
    if not pairs:
        return model
    for conv_node, norm_node in pairs:
        _fold(modules[str(conv_node.target)], modules[str(norm_node.target)])
        norm_node.replace_all_uses_with(conv_node)
        traced.graph.erase_node(norm_node)
    traced.graph.lint()
    traced.recompile()
    return traced


def _pairs(
    traced: fx.GraphModule, modules: dict[str, nn.Module], keep: Collection[str]
) -> list[tuple[fx.Node, fx.Node]]:
    """Find norms that follow a convolution whose result nothing else reads."""
    calls = Counter(
        id(modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module"
    )
    owners = Counter(
        id(parameter) for module in modules.values() for parameter in module._parameters.values()
    )
    found = []
    for norm_node in traced.graph.nodes:
        if norm_node.op != "call_module" or norm_node.target in keep:
            continue
        norm, source = modules[norm_node.target], norm_node.args[0]
        if type(norm) not in _NORMS or not isinstance(source, fx.Node):
            continue
        if source.op != "call_module" or norm.running_mean is None:
            continue
        conv = modules[str(source.target)]
        if type(conv) not in _CONVOLUTIONS or len(source.users) != 1:
            continue
        if calls[id(conv)] > 1 or owners[id(conv.weight)] > 1:
            continue  # folding would change the other call too
        found.append((source, norm_node))
    return found


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = (variance + float(norm.__dict__["eps"])).rsqrt()
    shift = torch.zeros_like(mean)
    if norm._parameters.get("weight") is not None:
        scale, shift = scale * norm.get_parameter("weight"), norm.get_parameter("bias")
    weight, bias = conv.get_parameter("weight"), conv._parameters.get("bias")
    weight.mul_(scale.reshape(-1, *[1] * (weight.ndim - 1)))
    shift = shift + ((0 if bias is None else bias) - mean) * scale
    conv.register_parameter("bias", nn.Parameter(shift.clone(), requires_grad=False))

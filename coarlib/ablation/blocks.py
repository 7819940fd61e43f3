"""Whole blocks as components: what a block writes into the residual stream, taken away.

A block is a member of a repeated list (``nn.ModuleList``, ``nn.Sequential``) that is no mere
sequence itself: a residual block, a transformer layer. Without it the stream goes past: the weights
of the layers that write into the stream are zero, and what lies on the shortcut stays.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from coarlib.ablation.components import ComponentGroup
from coarlib.ablation.slices import ParameterSlice, SliceGroup
from coarlib.ablation.transformers import attention_heads, mlp_neurons

# What residual networks call the branch around a block; its weights are not the block's.
_SHORTCUTS = ("shortcut", "downsample", "skip", "identity")


def blocks(name: str, module: nn.Module) -> list[SliceGroup]:
    """Return the blocks that a list of modules holds, one component each."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return []
    found = []
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) or not list(child.children()):
            continue
        path = f"{name}.{key}" if name else key
        if writers := _writers(path, child):
            found.append(SliceGroup(path, "block", tuple(map(ParameterSlice, writers))))
    return found


def _writers(path: str, block: nn.Module) -> list[str]:
    """Return the weights that write into the residual stream.

    Those are the output projections of attention and of the MLP where both are recognised; else
    the last weights of the block, besides those of the attention.
    """
    heads: list[ComponentGroup] = []
    neurons: list[ComponentGroup] = []
    last = ""
    for name, module in block.named_modules(prefix=path):
        heads += attention_heads(name, module)
        neurons += mlp_neurons(name, module)
        is_layer = isinstance(module, _ConvNd | nn.Linear) or type(module).__name__ == "Conv1D"
        inside = name[len(path) :].split(".")
        if is_layer and not any(word in part for word in _SHORTCUTS for part in inside):
            last = f"{name}.weight"
    found = [group.path for group in (*heads, *neurons)]
    return list(dict.fromkeys(found if neurons or not last else [*found, last]))

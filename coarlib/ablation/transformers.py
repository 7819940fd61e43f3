"""Attention heads and MLP neurons of transformers, whoever wrote them.

Ablating a head or a neuron means that nothing of it reaches the residual stream, so its weights
are the slice of the *output* projection that reads it: ``head_dim`` inputs of the attention's
output projection, or one input of the MLP's down projection. That is the same slice for separate
and fused query–key–value projections and for grouped key–value heads (a group's keys and values
stay, because other heads read them too).
"""

from __future__ import annotations

from torch import nn

from coarlib.ablation.components import ComponentGroup

# Output projections of attention: transformers' GPT-2, Llama, BERT/ViT; torch; timm; llama2.c.
_ATTENTION_OUTPUTS = ("c_proj", "o_proj", "output.dense", "out_proj", "proj", "dense", "wo")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
# (up, down) projections of MLPs: Llama, GPT-2, timm, torch, BERT/ViT, llama2.c.
_MLPS = (
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("intermediate", "output.dense"),
    ("w1", "w2"),
)


def attention_heads(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return the heads of an attention module as slices of its output projection."""
    projection = _first(module, _ATTENTION_OUTPUTS)
    if projection is None:
        return []
    path, linear = projection
    axis, inputs = _inputs(linear)
    heads = _number_of_heads(module, inputs)
    if not heads or inputs % heads:
        return []
    full = f"{name}.{path}" if name else path
    return [ComponentGroup(full, "weight", "attention_head", axis, heads, width=inputs // heads)]


def mlp_neurons(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return the hidden neurons of an MLP as inputs of its down projection."""
    for up, down in _MLPS:
        if _get(module, up) is not None and (linear := _linear(module, down)) is not None:
            path = down
            break
    else:
        linears = [key for key, child in module.named_children() if isinstance(child, nn.Linear)]
        if not isinstance(module, nn.Sequential) or not name.endswith("mlp") or len(linears) != 2:
            return []
        path, linear = linears[1], module.get_submodule(linears[1])
    axis, inputs = _inputs(linear)
    full = f"{name}.{path}" if name else path
    return [ComponentGroup(full, "weight", "mlp_neuron", axis, inputs)]


def _number_of_heads(module: nn.Module, inputs: int) -> int:
    for owner in (module, *(child for _, child in module.named_children())):
        for attribute in _HEAD_COUNTS:
            if isinstance(count := getattr(owner, attribute, None), int):
                return count
    dimension = getattr(module, "head_dim", None)  # transformers' Llama keeps only this
    return inputs // dimension if isinstance(dimension, int) and dimension else 0


def _first(module: nn.Module, paths: tuple[str, ...]) -> tuple[str, nn.Module] | None:
    for path in paths:
        if (linear := _linear(module, path)) is not None:
            return path, linear
    return None


def _linear(module: nn.Module, path: str) -> nn.Module | None:
    found = _get(module, path)
    return found if isinstance(found, nn.Linear) or type(found).__name__ == "Conv1D" else None


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _inputs(linear: nn.Module) -> tuple[int, int]:
    """Return the axis of a projection's weight along which its inputs lie, and their number."""
    axis = 1 if isinstance(linear, nn.Linear) else 0
    return axis, linear.get_parameter("weight").shape[axis]

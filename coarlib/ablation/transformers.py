"""Attention heads, MLP neurons and experts of transformers, whoever wrote them.

Ablating a head or a neuron means that nothing of it reaches the residual stream, so its weights
are the slice of the *output* projection that reads it: ``head_dim`` inputs of the attention's
output projection, or one input of the MLP's down projection. That is the same slice for separate
and fused query–key–value projections and for grouped key–value heads (a group's keys and values
stay, because other heads read them too).

The projections are known by the names that architectures give them, and else by their shapes: the
linear layer of an attention that makes no queries, keys or values; the last of the linear layers of
an MLP, if it reads what the others make. The experts of a mixture lie in one module each, or side
by side along the first axis of one parameter.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from coarlib.ablation.components import ComponentGroup
from coarlib.ablation.slices import ParameterSlice, SliceGroup

# Output projections of attention: transformers' GPT-2, Llama, BERT/ViT; torch; timm; llama2.c …
_ATTENTION_OUTPUTS = (
    *("c_proj", "o_proj", "output.dense", "out_proj", "proj", "dense", "wo", "Wo", "o"),
    *("out_lin", "to_out.0", "output_proj"),
)
_HEAD_COUNTS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_head"),
    "n_attn_heads",
)
_HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "d_head")
_QUERIES_KEYS_VALUES = re.compile(
    r"(q|k|v|qk|kv|qkv|wq|wk|wv|wqkv|query|key|value|c_attn|query_key_value|in_proj|pos_proj)"
    r"([_.].*)?|to_(q|k|v|qkv|kv)|.*_(query|key|value|qkv)(_proj)?",
    re.IGNORECASE,
)
# (up, down) projections of MLPs: Llama, GPT-2, timm, torch, BERT/ViT, llama2.c, Phi-3, GPT-NeoX …
_MLPS = (
    *(("up_proj", "down_proj"), ("gate_up_proj", "down_proj"), ("c_fc", "c_proj")),
    *(("fc1", "fc2"), ("linear1", "linear2"), ("intermediate", "output.dense"), ("w1", "w2")),
    *(("dense_h_to_4h", "dense_4h_to_h"), ("fc_in", "fc_out"), ("wi", "wo"), ("wi_0", "wo")),
    *(("lin1", "lin2"), ("Wi", "Wo"), ("intermediate_dense", "output_dense")),
    *(("ffn", "ffn_output"), ("pwconv1", "pwconv2"), ("linear_1", "linear_2")),
)
_MLP_NAME = re.compile(r"mlp|ffn|ff$|feed_?forward|dense|expert", re.IGNORECASE)
_NO_MLP = re.compile(r"bias|position", re.IGNORECASE)  # Swin 2 computes biases of positions so
_EXPERT_DOWN = ("down_proj", "w2", "wo", "output_linear")
_EXPERT_UP = ("gate_up_proj", "up_proj", "w1", "wi", "input_linear")


def attention_heads(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return the heads of an attention module as slices of its output projection."""
    projection = _first(module, _ATTENTION_OUTPUTS) or _output_by_elimination(module)
    if projection is None:
        return _heads_of_an_axis(name, module)
    path, linear = projection
    axis, inputs = _inputs(linear)
    heads = _number_of_heads(module, inputs)
    if not heads or inputs % heads:
        return []
    full = f"{name}.{path}" if name else path
    return [ComponentGroup(full, "weight", "attention_head", axis, heads, width=inputs // heads)]


def _heads_of_an_axis(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return heads that have an axis of their own, as in XLNet's ``o [model, head, size]``."""
    heads = _number_of_heads(module, 0)
    own = dict(module.named_parameters(recurse=False))
    writer = own.get("o")
    if writer is None or not {"q", "k", "v"} <= set(own) or writer.ndim != 3:
        return []
    if writer.shape[1] != heads:
        return []
    return [ComponentGroup(name, "o", "attention_head", 1, heads)]


def mlp_neurons(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return the hidden neurons of an MLP as inputs of its down projection."""
    for up, down in _MLPS:
        if _get(module, up) is not None and (linear := _linear(module, down)) is not None:
            path = down
            break
    else:
        found = _down_by_shape(name, module)
        if found is None:
            return []
        path, linear = found
    axis, inputs = _inputs(linear)
    full = f"{name}.{path}" if name else path
    return [ComponentGroup(full, "weight", "mlp_neuron", axis, inputs)]


def experts(name: str, module: nn.Module) -> list[ComponentGroup | SliceGroup]:
    """Return the experts of a mixture: what each writes, taken away."""
    if (fused := _fused(module)) is not None:
        down, units, _, _ = fused
        return [ComponentGroup(name, down, "expert", 0, units)]
    if not isinstance(module, nn.ModuleList | nn.ModuleDict) or not _is_experts(name):
        return []
    found: list[ComponentGroup | SliceGroup] = []
    for key, child in module.named_children():
        path = f"{name}.{key}"
        if writers := mlp_neurons(path, child):
            pieces = tuple(ParameterSlice(group.path, group.axis) for group in writers)
            found.append(SliceGroup(path, "expert", pieces))
    return found


def expert_neurons(name: str, module: nn.Module) -> list[ComponentGroup]:
    """Return the hidden neurons of experts, such as ``down_proj[2, :, 5]``, expert by expert."""
    if (fused := _fused(module)) is not None:
        down, units, axis, neurons = fused
        inner = axis, neurons
        return [ComponentGroup(name, down, "expert_neuron", 0, units * neurons, inner=inner)]
    if not _is_experts(name.rpartition(".")[0]):
        return []
    groups = mlp_neurons(name, module)
    return [replace(group, kind="expert_neuron") for group in groups]


def expert_writers(name: str, module: nn.Module) -> list[str]:
    """Return what fused experts write with, and their biases: a router weighs those."""
    if (fused := _fused(module)) is None:
        return []
    keys = [key for key, x in module.named_parameters(recurse=False) if key.startswith(fused[0])]
    return [f"{name}.{key}" if name else key for key in keys]


def _is_experts(name: str) -> bool:
    return name.rpartition(".")[2] in ("experts", "expert")


def _fused(module: nn.Module) -> tuple[str, int, int, int] | None:
    """Return (name, experts, axis of the neurons, neurons) of what fused experts write with."""
    own = {key: x for key, x in module.named_parameters(recurse=False) if x.ndim == 3}
    for down in _EXPERT_DOWN:
        for up in _EXPERT_UP:
            if down in own and up in own:
                (_, a, b), (units, c, d) = own[up].shape, own[down].shape
                plain, swapped = b == c and a in (d, 2 * d), a == d and b in (c, 2 * c)
                if plain and swapped:
                    plain = not getattr(module, "is_transposed", False)
                if plain or swapped:
                    return (down, units, 2, d) if plain else (down, units, 1, c)
    return None


def _output_by_elimination(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the last linear layer of an attention that makes no queries, keys or values.

    Those may be made by an attention inside it, which then has no output projection of its own.
    """
    if not _is_attention(module):
        return None
    linears = [key for key, child in module.named_children() if is_linear(child)]
    projections = [key for key in linears if _QUERIES_KEYS_VALUES.fullmatch(key)]
    inner = [child for child in module.children() if _is_attention(child)]
    others = [key for key in linears if key not in projections]
    if not others or not (projections or inner) or any(attention_heads("", x) for x in inner):
        return None
    return others[-1], module.get_submodule(others[-1])


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _down_by_shape(name: str, module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the last linear layer of an MLP whose layers fit together."""
    words = f"{name.rpartition('.')[2]} {type(module).__name__}"
    if not _MLP_NAME.search(words) or _NO_MLP.search(words):
        return None
    linears = [(key, child) for key, child in module.named_children() if is_linear(child)]
    if not 2 <= len(linears) <= 3:
        return None
    sizes = [_sizes(linear) for _, linear in linears]
    (inputs, hidden), (last_in, last_out) = sizes[0], sizes[-1]
    same = all(size == sizes[0] for size in sizes[:-1])
    if same and inputs == last_out and hidden in (last_in, 2 * last_in) and last_in != last_out:
        return linears[-1]
    return None


def _number_of_heads(module: nn.Module, inputs: int) -> int:
    for owner in (module, *(child for _, child in module.named_children())):
        for attribute in _HEAD_COUNTS:
            if isinstance(count := getattr(owner, attribute, None), int):
                return count
    for attribute in _HEAD_SIZES:  # transformers' Llama and GPT-NeoX keep only this
        dimension = getattr(module, attribute, None)
        if isinstance(dimension, int) and dimension:
            return inputs // dimension
    return 0


def _first(module: nn.Module, paths: tuple[str, ...]) -> tuple[str, nn.Module] | None:
    for path in paths:
        if (linear := _linear(module, path)) is not None:
            return path, linear
    return None


def _linear(module: nn.Module, path: str) -> nn.Module | None:
    found = _get(module, path)
    return found if is_linear(found) else None


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a linear layer, GPT-2's included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _inputs(linear: nn.Module) -> tuple[int, int]:
    """Return the axis of a projection's weight along which its inputs lie, and their number."""
    axis = 1 if isinstance(linear, nn.Linear) else 0
    return axis, linear.get_parameter("weight").shape[axis]


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear layer."""
    axis, inputs = _inputs(linear)
    return inputs, linear.get_parameter("weight").shape[1 - axis]

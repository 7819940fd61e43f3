"""Finding the components of any ``nn.Module``, by kind and by name pattern.

Each kind is one small function that looks at one module and says which slices of its parameters
are components. Attention heads and MLP neurons are in :mod:`coarlib.ablation.transformers`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coarlib.ablation.blocks import blocks
from coarlib.ablation.components import ComponentGroup, ComponentSet, Group
from coarlib.ablation.plain import plain
from coarlib.ablation.transformers import attention_heads, mlp_neurons
from coarlib.errors import ComponentError, nearest

Finder = Callable[[str, nn.Module], Sequence[Group]]


def _conv_filters(name: str, module: nn.Module) -> list[ComponentGroup]:
    if not isinstance(module, _ConvNd):
        return []
    transposed = isinstance(module, _ConvTransposeNd)  # weight is [in, out / groups, …]
    return [
        ComponentGroup(
            name,
            "weight",
            "conv_filter",
            axis=int(transposed),
            units=module.out_channels,
            groups=module.groups if transposed else 1,
        )
    ]


def _linear_rows(name: str, module: nn.Module) -> list[ComponentGroup]:
    if not isinstance(module, nn.Linear):
        return []
    return [ComponentGroup(name, "weight", "linear_row", 0, module.out_features)]


def _linear_inputs(name: str, module: nn.Module) -> list[ComponentGroup]:
    if not isinstance(module, nn.Linear):
        return []
    return [ComponentGroup(name, "weight", "linear_input", 1, module.in_features)]


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2 in transformers (weight ``[in, out]``)."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, _ConvNd)


def _conv1d_slices(name: str, module: nn.Module, kind: str, axis: int) -> list[ComponentGroup]:
    if not is_conv1d(module):
        return []
    weight = module.get_parameter("weight")
    return [ComponentGroup(name, "weight", kind, axis, weight.shape[axis])]


def _conv1d_inputs(name: str, module: nn.Module) -> list[ComponentGroup]:
    return _conv1d_slices(name, module, "conv1d_input", 0)


def _conv1d_outputs(name: str, module: nn.Module) -> list[ComponentGroup]:
    return _conv1d_slices(name, module, "conv1d_output", 1)


def _in_projection_rows(name: str, module: nn.Module) -> list[ComponentGroup]:
    if not isinstance(module, nn.MultiheadAttention) or module.in_proj_weight is None:
        return []
    rows = module.in_proj_weight.shape[0]
    return [ComponentGroup(name, "in_proj_weight", "in_projection_row", 0, rows)]


def _norm_channels(name: str, module: nn.Module) -> list[ComponentGroup]:
    is_norm = isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm)
    weight = getattr(module, "weight", None)
    if not is_norm and not type(module).__name__.endswith("RMSNorm"):
        return []
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return []
    return [ComponentGroup(name, "weight", "norm_channel", 0, weight.shape[0])]


KINDS: Mapping[str, Finder] = MappingProxyType(
    {
        "conv_filter": _conv_filters,
        "linear_row": _linear_rows,
        "linear_input": _linear_inputs,
        "conv1d_input": _conv1d_inputs,
        "conv1d_output": _conv1d_outputs,
        "in_projection_row": _in_projection_rows,
        "norm_channel": _norm_channels,
        "attention_head": attention_heads,
        "mlp_neuron": mlp_neurons,
        "block": blocks,
    }
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The component sets of COAR's four published set-ups; the counts are the paper's.
        "cifar_resnet": {"kinds": ["conv_filter"], "include": ["*conv*"]},  # 2,304
        "imagenet_resnet": {"kinds": ["conv_filter"], "include": ["*conv*"]},  # 22,720
        "imagenet_vit": {  # 82,944
            "kinds": ["linear_row", "in_projection_row"],
            "exclude": ["heads*"],
        },
        "gpt2_tinystories": {  # 64,512; inputs, not outputs: Conv1D stores its weight transposed
            "kinds": ["conv1d_input"],
            "include": ["*attn.c_attn", "*attn.c_proj", "*mlp.c_fc", "*mlp.c_proj"],
        },
    }
)


def find_components(
    model: nn.Module,
    kinds: str | Sequence[str] = ("conv_filter",),
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
) -> ComponentSet:
    """Collect the components of a model, in the order of ``named_modules``.

    Parameters
    ----------
    model : nn.Module
    kinds : str or sequence of str
        Keys of :data:`KINDS`.
    include, exclude : str or sequence of str
        Shell patterns on module paths; a module counts if it matches any of ``include`` and none
        of ``exclude``.

    Returns
    -------
    ComponentSet

    Raises
    ------
    ComponentError
        For an unknown kind, an empty selection, or a parameter that two different modules share
        (ablating it would change both).
    """
    kinds, include, exclude = (
        (words,) if isinstance(words, str) else tuple(words) for words in (kinds, include, exclude)
    )
    for kind in kinds:
        if kind not in KINDS:
            raise ComponentError(
                f"unknown kind of component {kind}{nearest(str(kind), KINDS)}; there are "
                f"{', '.join(KINDS)}"
            )
    if not isinstance(model, nn.Module):
        raise ComponentError(f"components are those of an nn.Module, not {type(model).__name__}")
    model = plain(model)

    def wanted(path: str) -> bool:
        chosen = any(fnmatchcase(path, pattern) for pattern in include)
        return chosen and not any(fnmatchcase(path, pattern) for pattern in exclude)

    groups = [
        group
        for name, module in model.named_modules()
        for kind in kinds
        for group in KINDS[kind](name, module)
        # Blocks are found in the list that holds them, everything else in its own module.
        if wanted(group.module if kind == "block" else name)
    ]
    if not groups:
        raise ComponentError(
            f"no component of kind {', '.join(kinds)} in a module that matches "
            f"{', '.join(include)}; list the modules with model.named_modules()"
        )
    components = ComponentSet(groups)
    _refuse_tied(model, components)
    return components


def preset(name: str, model: nn.Module) -> ComponentSet:
    """Return the component set that COAR used for one of its set-ups.

    Raises
    ------
    ComponentError
        If there is no such preset.
    """
    if name not in PRESETS:
        raise ComponentError(f"unknown preset {name}{nearest(name, PRESETS)}")
    return find_components(model, **PRESETS[name])


def _refuse_tied(model: nn.Module, components: ComponentSet) -> None:
    """Refuse parameters of two modules; one module under two names is one set of components."""
    owners: dict[int, dict[int, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)][id(module)] = f"{name}.{key}"
    for group in components.channels(model):
        parameter = model.get_parameter(group.path)
        names = list(owners[id(parameter)].values())
        if len(names) > 1:
            raise ComponentError(
                f"{' and '.join(names)} are one tied parameter, so ablating {group.path} would "
                "change both; exclude it or untie them"
            )

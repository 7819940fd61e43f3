"""Finding the components of any ``nn.Module``, by kind and by name pattern.

Each kind is one small function that looks at one module and says which slices of its parameters
are components. Attention heads and MLP neurons are in :mod:`coarlib.ablation.transformers`.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coarlib.ablation.blocks import blocks, weights
from coarlib.ablation.components import ComponentGroup, ComponentSet, Group
from coarlib.ablation.plain import is_quantised, plain
from coarlib.ablation.recurrent import hidden_units
from coarlib.ablation.transformers import attention_heads, expert_neurons, experts, mlp_neurons
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
        "expert": experts,
        "expert_neuron": expert_neurons,
        "hidden_unit": hidden_units,
        "block": lambda name, module: [],  # found in the model as a whole: blocks(model)
    }
)

# Kinds of which a layer without any is worth a word.
_IN_EVERY_LAYER = ("attention_head", "mlp_neuron", "block", "expert", "expert_neuron")

# Classes that say by their name that they hold some.
_BY_CLASS = {
    "attention_head": re.compile("attention|attn", re.IGNORECASE),
    "mlp_neuron": re.compile("mlp|feed_?forward|ffn", re.IGNORECASE),
}

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
    for words in (kinds, include, exclude):
        if not isinstance(words, str) and not isinstance(words, Iterable):
            raise ComponentError(f"components are named by words, not by {type(words).__name__}")
    kinds, include, exclude = (
        (words,) if isinstance(words, str) else tuple(words) for words in (kinds, include, exclude)
    )
    for word in (*kinds, *include, *exclude):
        if not isinstance(word, str):
            raise ComponentError(f"components are named by words, not by {word!r:.60}")
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

    whole = {group.module: [group] for group in blocks(model)} if "block" in kinds else {}
    groups = [
        group
        for name, module in model.named_modules()
        if wanted(name)
        for kind in kinds
        for group in (whole.get(name, ()) if kind == "block" else KINDS[kind](name, module))
    ]
    if not groups:
        raise ComponentError(
            f"no component of kind {', '.join(kinds)} in a module that matches "
            f"{', '.join(include)}{_quantised(model)}{_others(model, kinds)}; list the modules "
            "with model.named_modules()"
        )
    components = ComponentSet(groups)
    _refuse_tied(model, components)
    _name_what_is_missing(model, components, kinds, everywhere=include == ("*",) and not exclude)
    return components


def coverage(model: nn.Module, components: ComponentSet) -> list[str]:
    """Say in how many layers of each list of layers components of each kind lie.

    Returns
    -------
    list of str
        ``"attention_head in 24 of 24 layers of model.layers"``.
    """
    lines = []
    for kind in dict.fromkeys(group.kind for group in components):
        paths = [group.module for group in components if group.kind == kind]
        for name, count, total in _layers_with(plain(model), paths):
            lines.append(f"{kind} in {count} of {total} layers of {name or 'the model'}")
    return lines


def _layers_with(model: nn.Module, paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return for each outermost list of layers with any of the paths: name, layers with, layers."""
    lists: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if not isinstance(module, nn.ModuleList | nn.Sequential) or inside:
            continue
        members = [
            f"{name}.{key}" if name else key
            for key, x in module.named_children()
            if len(weights("", x)) > 1
        ]
        if len(members) > 1 and name:
            lists[name] = members
    found = []
    for name, members in lists.items():
        hits = [any(f"{path}.".startswith(f"{m}.") for path in paths) for m in members]
        if any(hits):
            found.append((name, sum(hits), len(hits)))
    return found


def _name_what_is_missing(
    model: nn.Module, components: ComponentSet, kinds: Sequence[str], *, everywhere: bool
) -> None:
    """Warn of kinds that were asked for and not found, and of layers without any."""
    missing = [k for k in kinds if not any(group.kind == k for group in components)]
    if missing:
        warnings.warn(
            f"{type(model).__name__} has no component of kind {', '.join(missing)} that is known "
            f"here{_quantised(model)}{_others(model, kinds)}; others can be named by slices of "
            "parameters",
            stacklevel=3,
        )
    for kind in kinds if everywhere else ():
        paths = [group.module for group in components if group.kind == kind]
        if paths and (left := _unrecognised(model, kind, paths)):
            first = f"{left[0]} ({type(model.get_submodule(left[0])).__name__})"
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            warnings.warn(f"no {kind} was found in {first}{more}, by its name one", stacklevel=3)
        partial = [x for x in _layers_with(model, paths) if x[1] < x[2]]
        if partial and kind in _IN_EVERY_LAYER:
            where = ", ".join(f"{n} of {total} layers of {name}" for name, n, total in partial)
            warnings.warn(f"{kind} was found in {where} only", stacklevel=3)


def _unrecognised(model: nn.Module, kind: str, paths: Sequence[str]) -> list[str]:
    """Return the outermost modules that by their class have components of a kind, and no path."""
    if (pattern := _BY_CLASS.get(kind)) is None:
        return []
    outermost: dict[str, bool] = {}
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}." if outer else "") for outer in outermost)
        if not inside and pattern.search(type(module).__name__) and len(weights("", module)) > 1:
            start = f"{name}." if name else ""
            outermost[name] = any(f"{path}.".startswith(start) for path in paths)
    return [name for name, has_some in outermost.items() if not has_some]


def _others(model: nn.Module, kinds: Sequence[str]) -> str:
    """Say which kinds there are instead that do what the wanted ones do elsewhere."""
    other = [k for k in ("expert_neuron", "expert", "hidden_unit") if k not in kinds]
    there = [k for k in other if any(KINDS[k](n, m) for n, m in model.named_modules())]
    return f"; it has components of kind {', '.join(there)}" if there else ""


def _quantised(model: nn.Module) -> str:
    """Say that some layers are quantised, so that they are none of those that are looked for."""
    names = [name for name, module in model.named_modules() if is_quantised(module)]
    if not names:
        return ""
    return f" (its layers, such as {names[0]}, are quantised: load the model in floating point)"


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

"""Whole blocks as components: what a block writes into the residual stream, taken away.

A block is a member of a repeated list (``nn.ModuleList``, ``nn.Sequential``) that is no mere
sequence itself: a residual block, a transformer layer. Without it the stream goes past: the weights
of the layers that write into the stream are zero, and what lies on the shortcut stays.

What writes is found by tracing the block where that works: a layer from which the output is
reached past no other layer; the shortcut is a layer that alone joins input and output. Where it
does not work, the writers are the output projections of attentions, MLPs and experts if these are
all that the block holds, else all its weights; a task checks either when it is prepared.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from coarlib.ablation.slices import ParameterSlice, SliceGroup
from coarlib.ablation.transformers import (
    attention_heads,
    expert_writers,
    is_linear,
    mlp_neurons,
)

_LISTS = (nn.ModuleList, nn.Sequential)


def blocks(model: nn.Module) -> list[SliceGroup]:
    """Return the blocks of a model, one component each.

    Of lists within lists, such as the layers of a stage, the inner ones count.
    """
    found: dict[str, SliceGroup] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _LISTS) or name.rpartition(".")[2] in ("experts", "expert"):
            continue
        members = {
            f"{name}.{key}" if name else key: child
            for key, child in module.named_children()
            if not isinstance(child, _LISTS) and list(child.children())
        }
        outer = [path for path in found if name.startswith(f"{path}.")]
        if outer and len({type(child) for child in members.values()}) != 1:
            continue  # parts of a layer, such as its attention and its MLP
        inside = [
            SliceGroup(path, "block", tuple(map(ParameterSlice, writers)))
            for path, child in members.items()
            if len(weights(path, child)) > 1 and (writers := _writers(path, child))
        ]
        for path in outer if inside else ():
            del found[path]
        found |= {group.module: group for group in inside}
    return list(found.values())


def weights(path: str, block: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a block that mix channels: two axes or more, by full name."""
    return {
        name: parameter
        for name, parameter in block.named_parameters(prefix=path)
        if parameter.ndim > 1
    }


def _writers(path: str, block: nn.Module) -> list[str]:
    traced = _traced(block)
    if traced is not None:
        return [f"{path}.{name}.weight" for name in traced]
    known = _known_writers(path, block)
    return known or [name for name in weights(path, block) if not _embeds(block, path, name)]


def _embeds(block: nn.Module, path: str, name: str) -> bool:
    owner = block.get_submodule(name[len(path) + 1 :].rpartition(".")[0])
    return isinstance(owner, nn.Embedding)


def _known_writers(path: str, block: nn.Module) -> list[str]:
    """Return output projections, if the modules they belong to hold all weights of the block."""
    heads: list[str] = []
    writers: list[str] = []
    covered: list[str] = []
    for name, module in block.named_modules(prefix=path):
        attention, neurons = attention_heads(name, module), mlp_neurons(name, module)
        groups, fused = [*attention, *neurons], expert_writers(name, module)
        heads += [group.path for group in attention]
        writers += [*(group.path for group in neurons), *fused]
        if name != path and (groups or fused):
            covered.append(name)
        elif groups:  # an MLP that lies in the block itself
            covered += [f"{name}.{key}" for key, x in module.named_children() if is_linear(x)]
            covered += [f"{name}.intermediate", f"{name}.output"]
    left = [
        name
        for name in weights(path, block)
        if not any(name.startswith(f"{place}.") for place in covered)
        and "router" not in name
        and ".gate." not in name
        and not name.endswith("_gate.weight")
    ]
    return [] if left else list(dict.fromkeys([*heads, *writers]))


def _traced(block: nn.Module) -> list[str] | None:
    """Find the layers that write into the stream; none if there is no stream past the block.

    Returns None where the block cannot be traced.
    """
    try:
        graph = fx.Tracer().trace(block)
    except Exception:  # fx raises whatever the block's own code raises on a proxy
        return None
    modules = dict(block.named_modules())
    if not all(_is_plain(node, block, modules) for node in graph.nodes):
        return None
    ahead: dict[fx.Node, set[str | None]] = {}  # layers between input and node, where one at most
    for node in graph.nodes:
        before: set[str | None] = {None} if node.op == "placeholder" else set()
        before = before.union(*(ahead.get(source, set()) for source in node.all_input_nodes))
        if _is_layer(node, modules):
            before = {str(node.target)} if None in before else set()
        ahead[node] = before
    output = next(node for node in graph.nodes if node.op == "output")
    past = ahead[output]
    if not past:
        return []
    shortcut = set() if None in past else past
    last = dict.fromkeys(_last_layers(output, modules))
    return [name for name in reversed(list(last)) if name not in shortcut]


def _last_layers(output: fx.Node, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the layers from which the output is reached past no other."""
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop()
        if _is_layer(node, modules):
            yield str(node.target)
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)


def _is_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module":
        return False
    return any(x.ndim > 1 for x in modules[str(node.target)].parameters())


def _is_plain(node: fx.Node, block: nn.Module, modules: dict[str, nn.Module]) -> bool:
    """Whether weights are used by layers only, and those have a single one."""
    if node.op == "get_attr":
        owner, _, key = str(node.target).rpartition(".")
        value = getattr(block.get_submodule(owner), key)
        return sum(length > 1 for length in getattr(value, "shape", ())) < 2
    if not _is_layer(node, modules):
        return True
    module = modules[str(node.target)]
    return isinstance(module, _ConvNd | nn.Embedding) or is_linear(module)

"""Models that read one position of a sequence, computed there alone.

A classifier of the last token computes its last layers at every token and drops all but one.
``f(x)[:, -1]`` is ``f(x[:, -1])`` where f keeps positions apart: linear layers, activations, sums;
of attention it is the queries' positions that are chosen. So slices move towards the inputs, as
far as everything that reads a result reads the same slice of it. Outputs and gradients are the
same; nothing is computed of positions that are dropped.
"""

from __future__ import annotations

import inspect
import operator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from coarlib.history.inputs import Inputs

Cut = tuple[int, slice]
"""An axis from the end (-1 is the last), and what is read of it."""

_ELEMENTWISE = {
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Identity),
    *(F.relu, F.gelu, F.silu, F.tanh, F.sigmoid, F.dropout),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.neg),
    *(torch.add, torch.sub, torch.mul, torch.div),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *("relu", "tanh", "sigmoid", "exp", "add", "sub", "mul", "div"),
}
_LAST_AXIS = {nn.Linear, F.linear}
_FIRST_AXIS = {torch.stack, torch.sum, "sum"}


def only_positions_read(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a model of the same parameters that computes no position whose result it drops.

    It is ``model`` itself where that drops none, or where ``torch.fx`` cannot trace it. ``inputs``
    are some that it takes.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    others = list(inspect.signature(model.forward).parameters.values())[len(given) :]
    defaults = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        traced = fx.symbolic_trace(model, concrete_args=defaults)
        with torch.no_grad(), redirect_stderr(StringIO()):  # it prints what it raises
            ShapeProp(traced).propagate(*given)
    except Exception:  # fx raises whatever the model's own code raises on a proxy
        return model
    moved = False
    for node in reversed(list(traced.graph.nodes)):
        cuts = [_cut(node, user) for user in node.users]
        if cuts and cuts[0] is not None and all(cut == cuts[0] for cut in cuts):
            moved |= _move(traced, node, cuts[0])
    if not moved:
        return model
    traced.graph.lint()
    traced.recompile()
    return traced


def _shape(node: Any) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(found, "shape", ()))


def _cut(node: fx.Node, user: fx.Node) -> Cut | None:
    """Return what a user reads of a node, if it is a slice of constant ends along one axis."""
    if user.target is not operator.getitem or user.all_input_nodes != [node]:
        return None
    index = user.args[1]
    entries: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    whole = [entry == slice(None) for entry in entries]
    plain = all(type(entry) in {int, slice} for entry in entries)  # True is an axis of its own
    if not plain or whole.count(False) != 1 or whole[0] is False:  # the first is the batch
        return None
    axis = whole.index(False)
    entry = entries[axis]
    if isinstance(entry, int):
        entry = slice(entry, entry + 1 or None)
    return axis - len(_shape(node)), entry


def _move(traced: fx.GraphModule, node: fx.Node, cut: Cut) -> bool:
    """Let ``node``, all of whose readers read ``cut``, compute that alone, where this is known."""
    sources = _sources(traced, node, cut)
    for source in sources:
        index = (*(slice(None),) * (len(_shape(source)) + cut[0]), cut[1])
        with traced.graph.inserting_before(node):
            part = traced.graph.call_function(operator.getitem, (source, index))
        if node.target is F.scaled_dot_product_attention:
            node.update_arg(0, part)  # keys and values may be the same node
        else:
            node.replace_input_with(source, part)
    for user in list(node.users) if sources else ():
        entries: Any = user.args[1]
        if any(isinstance(entry, int) for entry in entries):
            user.update_arg(1, tuple(0 if isinstance(e, int) else e for e in entries))
        else:
            user.replace_all_uses_with(node)
            traced.graph.erase_node(user)
    return bool(sources)


def _sources(traced: fx.GraphModule, node: fx.Node, cut: Cut) -> list[fx.Node]:
    """Return the arguments of which ``node`` needs ``cut`` alone; none where that is not known."""
    target: Any = node.target
    if node.op == "call_module":
        module = traced.get_submodule(str(target))
        target = None if getattr(module, "inplace", False) else type(module)
    first = list(node.all_input_nodes[:1])
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return []
    if target in _LAST_AXIS:
        return first if cut[0] < -1 else []
    if target is F.scaled_dot_product_attention:
        return first if cut[0] == -2 and len(node.args) == 3 and not node.kwargs else []
    if target in _FIRST_AXIS:  # moves no axis from the end
        arguments = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        dim = arguments.get("dim", 0 if target is torch.stack else None)
        moved = dim is None or dim != 0 or arguments.get("keepdim")
        return [] if moved else list(node.all_input_nodes)
    if target not in _ELEMENTWISE:
        return []
    length = _shape(node)[cut[0]]
    shapes = {source: _shape(source) for source in node.all_input_nodes}
    return [s for s, own in shapes.items() if len(own) >= -cut[0] and own[cut[0]] == length]

"""A function of tensors as the plain list of operations that torch.func makes of it.

Nested transforms cost more time a call than the operations of a small network, and forward mode
computes with the zeros of what does not move. A function that is called again and again with
tensors of the same shapes is traced once; what is done to zeros is left out, the slope of an
activation that all rows share is computed once and not for each row, sums and products go into the
memory of a term that nothing else needs, matrix products into what they are added to, and products
of a column and a row are no matrix products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

WORTH_TRACING = 12
"""Calls with the same shapes after which a function is traced."""

_aten = torch.ops.aten
_ZEROS = {_aten.zeros, _aten.zeros_like, _aten.new_zeros, _aten._efficientzerotensor}
_ALIKE = {_aten.expand, _aten.view, _aten._unsafe_view, _aten.reshape, _aten.unsqueeze}
_ALIKE |= {_aten.squeeze, _aten.t, _aten.transpose, _aten.permute, _aten.alias, _aten.detach}
_ALIKE |= {_aten.neg, _aten.sum, _aten.clone}
_PRODUCTS = {_aten.mul, _aten.mm, _aten.bmm}
_IN_PLACE = {_aten.add.Tensor: _aten.add_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}
_FRESH = {_aten.add, _aten.add_, _aten.bmm, _aten.mm, _aten.mul, _aten.mul_}
_RENAMED = {_aten.view, _aten._unsafe_view, _aten.reshape, _aten.transpose, _aten.unsqueeze}
_SLOPES = {_aten.gelu_backward, _aten.threshold_backward}
"""Products of a first argument and a costly function of a second, element by element."""


class Traced:
    """Calls a function, from its trace where the same shapes keep coming.

    Parameters
    ----------
    function : callable (tensors, in dictionaries and tuples) -> tensors
        Of nothing but its arguments, and the same operations for the same shapes. It may change
        its arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._calls: Counter[Any] = Counter()
        self._traces: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        key = tuple((tuple(t.shape), t.dtype, t.device) for t in tree_leaves(arguments))
        self._calls[key] += 1
        if key not in self._traces and self._calls[key] > WORTH_TRACING:
            self._traces[key] = self._trace(*arguments)
        return self._traces.get(key, self._function)(*arguments)

    def _trace(self, *arguments: Any) -> Callable[..., Any]:
        try:
            found = make_fx(self._function)(*tree_map(torch.clone, arguments))
        except RuntimeError:  # the model asks for values (a mask's, say), which a trace has not
            return self._function
        without_zeros(found)
        share_slopes(found)
        in_place(found)
        accumulate(found)
        multiply_out(found)
        return found


def without_zeros(traced: GraphModule) -> None:
    """Leave out of a trace what is done to zeros, in place; sums with them are the other term."""
    zeros: set[Node] = set()
    for node in list(traced.graph.nodes):
        kind = getattr(node.target, "overloadpacket", None)
        parts = [part for part in node.all_input_nodes if part in zeros]
        alike = kind in _ALIKE and bool(parts)
        if kind in _ZEROS or alike or (kind in _PRODUCTS and parts):
            zeros.add(node)
        elif kind is _aten.copy_ and _is_blank(node.args[0]):
            _replace(node, node.args[1])
        elif kind is _aten.add and len(parts) == 1 and not node.kwargs:
            other = next((p for p in node.args if isinstance(p, Node) and p not in zeros), None)
            _replace(node, other)
        elif node.target is _aten.view.default:
            node.target = _aten.reshape.default  # what it views may now be laid out otherwise
    traced.graph.eliminate_dead_code()
    traced.recompile()


def share_slopes(traced: GraphModule) -> None:
    """Compute slopes at what is the same for all rows once, in place of once a row."""
    slopes: dict[Any, Node] = {}
    for node in list(traced.graph.nodes):
        if getattr(node.target, "overloadpacket", None) not in _SLOPES:
            continue
        at = node.args[1]
        source = _origin(at.args[0] if at.target is _aten.expand.default else at)
        if source.meta["val"].ndim == 0 or source.meta["val"].shape == node.meta["val"].shape:
            continue
        rest = (*node.args[2:], *sorted(node.kwargs.items()))
        key = node.target, source, rest
        with traced.graph.inserting_before(node):
            if key not in slopes:
                ones = traced.graph.call_function(_aten.ones_like.default, (source,))
                slopes[key] = traced.graph.call_function(
                    node.target, (ones, source, *node.args[2:]), dict(node.kwargs)
                )
                slopes[key].meta = dict(source.meta)
            product = traced.graph.call_function(_aten.mul.Tensor, (node.args[0], slopes[key]))
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def in_place(traced: GraphModule) -> None:
    """Let sums and products of a fresh tensor that has no other use go into its memory."""
    for node in traced.graph.nodes:
        if node.target not in _IN_PLACE or node.kwargs or len(node.all_input_nodes) < 2:
            continue
        first, second = node.args
        if not _is_spare(first, node):
            first, second = second, first
        if _is_spare(first, node):
            node.target, node.args = _IN_PLACE[node.target], (first, second)
    traced.recompile()


def accumulate(traced: GraphModule) -> None:
    """Let batched products that are added to a tensor in place be added by the product itself."""
    for node in traced.graph.nodes:
        if node.target is not _aten.add_.Tensor or node.kwargs:
            continue
        product, turned = node.args[1], False
        while len(product.users) == 1 and _keeps_layout(product):
            turned ^= product.target is _aten.transpose.int
            product = product.args[0]
        if product.target is _aten.bmm.default and len(product.users) == 1 and not turned:
            node.target, node.args = _aten.baddbmm_.default, (node.args[0], *product.args)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def multiply_out(traced: GraphModule) -> None:
    """Let batched products over a single index be products element by element."""
    for node in traced.graph.nodes:
        if node.target is _aten.bmm.default and node.args[0].meta["val"].shape[2] == 1:
            node.target = _aten.mul.Tensor
    traced.recompile()


def _keeps_layout(node: Node) -> bool:
    """Whether a node is its argument, or the argument with its last two axes exchanged."""
    if node.target is _aten.transpose.int:
        return sorted(axis % 3 for axis in node.args[1:]) == [1, 2]  # type: ignore[operator]
    kind = getattr(node.target, "overloadpacket", None)
    if kind not in _RENAMED | {_aten.detach, _aten.alias, _aten.expand}:
        return False
    return _shape(node) is not None and _shape(node) == _shape(node.args[0])  # type: ignore[arg-type]


def _is_spare(node: Node, user: Node) -> bool:
    """Whether a node is memory of its own, of the shape its only user makes."""
    if _shape(node) is None or _shape(node) != _shape(user):
        return False
    while len(node.users) == 1 and getattr(node.target, "overloadpacket", None) in _RENAMED:
        node = node.args[0]  # type: ignore[assignment]
    return len(node.users) == 1 and getattr(node.target, "overloadpacket", None) in _FRESH


def _origin(node: Node) -> Node:
    """Return what a node is another name of."""
    while node.target is _aten.alias.default:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_blank(node: Any) -> bool:
    """Whether a node is fresh memory that forward mode copies a derivative into."""
    kind = getattr(node.target, "overloadpacket", None)
    return kind is _aten._new_zeros_with_same_feature_meta and len(node.users) == 1


def _replace(node: Node, other: Any) -> None:
    """Use ``other`` for a node, where it has the same shape."""
    if isinstance(other, Node) and _shape(node) == _shape(other) is not None:
        node.replace_all_uses_with(other)
        node.graph.erase_node(node)


def _shape(node: Node) -> Any:
    value = node.meta.get("val")
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else None

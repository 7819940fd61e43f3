"""A function of tensors as the plain list of operations that torch.func makes of it.

Nested transforms cost more time a call than the operations of a small network, and forward mode
computes with the zeros of what does not move. A function that is called again and again with
tensors of the same shapes is traced once, and what is done to zeros is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

WORTH_TRACING = 12
"""Calls with the same shapes after which a function is traced."""

_aten = torch.ops.aten
_ZEROS = {_aten.zeros, _aten.zeros_like, _aten.new_zeros, _aten._efficientzerotensor}
_ALIKE = {_aten.expand, _aten.view, _aten._unsafe_view, _aten.reshape, _aten.unsqueeze}
_ALIKE |= {_aten.squeeze, _aten.t, _aten.transpose, _aten.permute, _aten.alias, _aten.detach}
_ALIKE |= {_aten.neg, _aten.sum, _aten.clone}
_PRODUCTS = {_aten.mul, _aten.mm, _aten.bmm}


class Traced:
    """Calls a function, from its trace where the same shapes keep coming.

    Parameters
    ----------
    function : callable (tensors, in dictionaries and tuples) -> tensors
        Of nothing but its arguments, and the same operations for the same shapes.
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
            found = make_fx(self._function)(*arguments)
        except RuntimeError:  # the model asks for values (a mask's, say), which a trace has not
            return self._function
        without_zeros(found)
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

"""Many models of one architecture as one wide model.

The architecture is traced into a graph (torch.fx). Layers that are known compute all models at once
(:mod:`coarlib.retraining.layers`), what acts on every entry by itself is called as it is, and the
rest goes through ``torch.vmap``, one function or layer at a time.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from coarlib.retraining.layers import (
    FRESH,
    LAYERS,
    WAYS,
    Way,
    convolved_and_pooled,
    fits,
    pooled,
)
from coarlib.retraining.tracing import traced

__all__ = ["WideModel", "wide_models"]

State = Mapping[str, torch.Tensor]
Values = dict[fx.Node, Any]
Rule = Callable[[State, Values], Any]

# What nodes call: kinds of module, functions, and names of methods.
_RELU = {nn.ReLU, functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_SUMS = {operator.add, torch.add, "add"}
_ENTRYWISE = {
    *(nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Identity),
    *(functional.gelu, functional.silu, functional.elu, functional.leaky_relu),
    *(torch.tanh, torch.sigmoid, "tanh", "sigmoid", "contiguous", "detach"),
    *(operator.mul, operator.sub, operator.truediv, operator.neg, operator.iadd, operator.imul),
    *(torch.mul, torch.sub, torch.div, "mul", "sub", "div", "add_", "mul_"),
    *_RELU,
    *_SUMS,
}
_CHANNELWISE = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d),
}
_MAX_POOLS = {nn.MaxPool1d, nn.MaxPool2d, functional.max_pool1d, functional.max_pool2d}
_OF_SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim", "numel"}


def wide_models(model: nn.Module) -> dict[str, WideModel]:
    """Return K models like ``model``, in training mode, as one, by each of :data:`WAYS`.

    Empty if it cannot be traced.
    """
    model = copy.deepcopy(model)  # tracing runs its code
    graph = traced(model)
    if graph is None:
        return {}
    # Each changes the graph, and goes on reading it: so each has its own.
    return {name: WideModel(model, copy.deepcopy(graph), way) for name, way in WAYS.items()}


class WideModel:
    """K models as one.

    Parameters
    ----------
    model : nn.Module
        One of them; its state does not matter.
    graph : fx.Graph
        Its code.
    way : Way
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, way: Way) -> None:
        self._model, self._way = model, way
        self._pool_first(graph)
        self._names = _first_names(model)
        self._stacked: set[fx.Node] = set()  # whose values have the models as their first axis
        self._steps = [(node, self._rule(node)) for node in graph.nodes]
        self._last: dict[fx.Node, list[fx.Node]] = {}  # the values that nobody needs after a node
        needed: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            self._last[node] = [part for part in node.all_input_nodes if part not in needed]
            needed |= set(node.all_input_nodes)

    @property
    def has_images(self) -> bool:
        """Whether a layer computes on images, so that ways differ."""
        return any(isinstance(layer, nn.Conv2d) for layer in self._model.modules())

    def __call__(self, parameters: State, buffers: State, inputs: torch.Tensor) -> Any:
        """Evaluate K models.

        Parameters
        ----------
        parameters, buffers : mapping of tensors [K, …]
            As ``torch.func.stack_module_state`` gives; running statistics are updated in place.
        inputs : tensor [K, B, …]

        Returns
        -------
        tensor [K, B, …]
            Or what else the models return, with K the first axis of every tensor.
        """
        state: State = {**parameters, **buffers}
        values: Values = {}
        found: Any = inputs
        for node, rule in self._steps:
            found = values[node] = inputs if node.op == "placeholder" else rule(state, values)
            for part in self._last[node]:
                del values[part]
        return found

    def _pool_first(self, graph: fx.Graph) -> None:
        """Let a ReLU before max pooling follow it: the same, gradients too, on fewer entries."""
        for relu in list(graph.nodes):
            if self._called(relu) not in _RELU or len(relu.users) != 1:
                continue
            (before,), (pool,) = relu.all_input_nodes, relu.users
            if len(before.users) != 1 or not self._pools(pool, _MAX_POOLS):
                continue
            pool.replace_input_with(relu, before)
            pool.replace_all_uses_with(relu)
            relu.replace_input_with(before, pool)
            pool.append(relu)

    def _rule(self, node: fx.Node) -> Rule:
        """Choose how a node is evaluated; asked in the order of the graph."""
        if node.op == "output":
            return lambda state, values: _arguments(node, values)[0][0]
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op in {"call_function", "call_method"}:
            return self._function(node)
        self._stacked.add(node)
        if node.op == "placeholder":
            return lambda state, values: None
        return self._module(node, self._layer(node))

    def _layer(self, node: fx.Node) -> nn.Module:
        return self._model.get_submodule(str(node.target))

    def _called(self, node: fx.Node) -> Any:
        """Kind of module, function, or name of the method that a node calls, if it calls one."""
        if node.op == "call_module":
            layer = self._layer(node)
            return None if _hooked(layer) else type(layer)
        return node.target if node.op in ("call_function", "call_method") else None

    def _pools(self, node: fx.Node, kinds: set[Any]) -> bool:
        """Whether a node is a pool of some kind, of activations only and without indices."""
        module = self._layer(node) if node.op == "call_module" else None
        options = module.__dict__ if module else node.kwargs
        plain = len(node.all_input_nodes) == 1 and not options.get("return_indices")
        return plain and self._called(node) in kinds

    def _attribute(self, node: fx.Node) -> Rule:
        name = str(node.target)
        if name in self._names:
            self._stacked.add(node)
            return lambda state, values: state[self._names[name]]
        value = operator.attrgetter(name)(self._model)
        return lambda state, values: value

    def _module(self, node: fx.Node, layer: nn.Module) -> Rule:
        kind, way = self._called(node), self._way
        if self._pools(node, _CHANNELWISE):
            return self._pool(node)
        if kind in _ENTRYWISE:
            return self._entrywise(node)
        if kind is nn.Flatten:
            return self._flattened(node)
        places = self._places(node)
        if kind is None or not fits(layer):
            return self._mapped(node, places)
        compute, relu = LAYERS[kind], self._does_relu(node)
        if self._is_pooled(node):  # it is computed there
            return lambda state, values: values[node.all_input_nodes[0]]

        def known(state: State, values: Values) -> torch.Tensor:
            own = {name: state[place] for name, place in places.items()}
            return compute(layer, own, values[node.all_input_nodes[0]], way, relu)

        return known

    def _places(self, node: fx.Node) -> dict[str, str]:
        """Names of a layer's parameters and buffers in the state, by their own."""
        layer = self._layer(node)
        names = [*dict(layer.named_parameters()), *dict(layer.named_buffers())]
        return {name: self._names[f"{node.target}.{name}"] for name in names}

    def _pool(self, node: fx.Node) -> Rule:
        (source,), relu, window = node.all_input_nodes, self._does_relu(node), self._window(node)

        def pool(x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self._call(node, {}, {source: x}))

        if window is None or not self._is_pooled(source):
            return lambda state, values: pooled(pool, values[source], self._way, relu, window)
        layer: Any = self._layer(source)
        places = self._places(source)

        def both(state: State, values: Values) -> torch.Tensor:
            own = {name: state[place] for name, place in places.items()}
            x = values[source]
            return convolved_and_pooled(pool, layer, own, x, self._way, relu, window)

        return both

    def _is_pooled(self, node: fx.Node) -> bool:
        """Whether a node convolves images for nothing but a max pool of windows side by side."""
        if self._called(node) is not nn.Conv2d or len(node.users) != 1:
            return False
        return fits(self._layer(node)) and self._window(next(iter(node.users))) is not None

    def _window(self, node: fx.Node) -> tuple[int, int] | None:
        """Windows of a max pool of images, if they lie side by side."""
        if not self._pools(node, {nn.MaxPool2d, functional.max_pool2d}):
            return None
        if node.op == "call_module":
            pool = self._layer(node)
        else:
            options: Any = {k: v for k, v in node.kwargs.items() if k != "input"}
            pool = nn.MaxPool2d(*node.args[1:], **options)  # type: ignore[arg-type]
        size, stride, padding, dilation = (
            part if isinstance(part, tuple) else (part, part)
            for part in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        plain = (padding, dilation, pool.ceil_mode) == ((0, 0), (1, 1), False)
        return size if plain and stride == size else None  # type: ignore[return-value]

    def _does_relu(self, node: fx.Node) -> bool:
        """Whether a layer or pool also does the ReLU that follows it, in place."""
        if len(node.users) != 1 or self._called(next(iter(node.users))) not in _RELU:
            return False
        if node.op != "call_module" or self._called(node) is None:
            return self._pools(node, _CHANNELWISE)
        layer = self._layer(node)
        return self._pools(node, _CHANNELWISE) or (isinstance(layer, FRESH) and fits(layer))

    def _function(self, node: fx.Node) -> Rule:
        called, inputs = self._called(node), node.all_input_nodes
        if not self._stacked.intersection(inputs):
            return lambda state, values: self._call(node, {}, values)
        if (node.args[1] if called is getattr else called) in _OF_SHAPES:
            return lambda state, values: self._call(node, {}, {inputs[0]: values[inputs[0]][0]})
        self._stacked.add(node)
        special = {
            torch.cat: self._joined,
            functional.pad: self._padded,
            operator.getitem: self._item,
            torch.flatten: self._flattened,
            "flatten": self._flattened,
        }
        if called in special:
            return special[called](node)
        if called in _ENTRYWISE:
            return self._entrywise(node)
        if self._pools(node, _CHANNELWISE):
            return self._pool(node)
        return self._mapped(node, {})

    def _flattened(self, node: fx.Node) -> Rule:
        """Flatten axes behind the models' one."""
        options = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        if node.op == "call_module":
            options = vars(self._layer(node))
        first, last = options.get("start_dim", 0), options.get("end_dim", -1)
        if not (isinstance(first, int) and isinstance(last, int)):
            return self._mapped(node, {})
        source, axes = node.all_input_nodes[0], (first + (first >= 0), last + (last >= 0))
        return lambda state, values: values[source].flatten(*axes)

    def _entrywise(self, node: fx.Node) -> Rule:
        """Call it as it is, where no axis has to be put in for the models' one."""
        first, mapped = node.all_input_nodes[0], self._mapped(node, {})
        relu = self._called(node) in _RELU
        if relu and self._does_relu(first):
            return lambda state, values: values[first]
        if relu and self._called(first) in _SUMS and len(first.users) == 1:
            return lambda state, values: functional.relu_(values[first])

        def rule(state: State, values: Values) -> Any:
            tensors = [values[part] for part in node.all_input_nodes]
            alike = {part.ndim if isinstance(part, torch.Tensor) else None for part in tensors}
            if len(alike) == 1 and self._stacked.issuperset(node.all_input_nodes):
                return self._call(node, {}, values)
            return mapped(state, values)

        return rule

    def _joined(self, node: fx.Node) -> Rule:
        """Concatenate with the batch as the first axis, which keeps models side by side."""
        tensors: Any = node.args[0]
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if axis == 0 or not isinstance(axis, int) or not self._stacked.issuperset(tensors):
            return self._mapped(node, {})
        axis += axis > 0

        def rule(state: State, values: Values) -> torch.Tensor:
            parts = [values[part].transpose(0, 1) for part in tensors]
            return torch.cat(parts, axis).transpose(0, 1)

        return rule

    def _padded(self, node: fx.Node) -> Rule:
        """Pad with the batch as the first axis, which keeps models side by side."""
        (source,), mapped = node.all_input_nodes[:1], self._mapped(node, {})
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")

        def rule(state: State, values: Values) -> torch.Tensor:
            x = values[source]
            sides: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            of_all = mode == "constant" and len(node.all_input_nodes) == 1
            if not of_all or len(sides) > 2 * x.ndim - 4:
                return mapped(state, values)
            return torch.as_tensor(self._call(node, {}, {source: x.transpose(0, 1)})).transpose(
                0, 1
            )

        return rule

    def _item(self, node: fx.Node) -> Rule:
        (source, *_), index = node.all_input_nodes, node.args[1]
        mapped = self._mapped(node, {})
        index = index if isinstance(index, tuple) else (index,)
        plain = all(part is None or part is ... or isinstance(part, int | slice) for part in index)
        static = plain and len(node.all_input_nodes) == 1

        def rule(state: State, values: Values) -> Any:
            value = values[source]
            if not isinstance(value, torch.Tensor):
                return self._call(node, {}, values)
            return value[(slice(None), *index)] if static else mapped(state, values)

        return rule

    def _mapped(self, node: fx.Node, places: Mapping[str, str]) -> Rule:
        """Evaluate a node by ``torch.vmap``; ``places`` names its parameters and buffers."""
        inputs = [part for part in node.all_input_nodes if part in self._stacked]

        def rule(state: State, values: Values) -> Any:
            def of_one(own: dict[str, torch.Tensor], given: list[Any]) -> Any:
                return self._call(node, own, {**values, **dict(zip(inputs, given, strict=True))})

            own = {name: state[place] for name, place in places.items()}
            return vmap(of_one)(own, [values[part] for part in inputs])

        return rule

    def _call(self, node: fx.Node, own: dict[str, torch.Tensor], values: Values) -> Any:
        """Do what a node says, with values of its inputs and parameters and buffers of its own."""
        args, kwargs = _arguments(node, values)
        if node.op == "call_module":
            return functional_call(self._layer(node), own, args, kwargs)
        if node.op == "call_method":  # models side by side are no contiguous memory to view
            name = "reshape" if node.target == "view" else str(node.target)
            return getattr(args[0], name)(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)


def _arguments(node: fx.Node, values: Values) -> Any:
    return fx.node.map_arg((node.args, node.kwargs), values.__getitem__)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    found = {}
    for name, part in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        found[name] = first.setdefault(id(part), name)
    return found

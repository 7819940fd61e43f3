"""One pass of a model at many parameters: each linear layer becomes a batched matrix product.

Z parameters with R rows each go through the model as one batch of Z · R rows. Its linear layers
and embeddings are met where they are called (a torch function mode) and computed with parameters
of their own; all else sees a larger batch. The same place gives the factors of the gradients.

This needs every trained tensor to be used by linear layers and embeddings alone, and rows that
stay apart, first in the batch; :meth:`StackedModel.of` watches one pass and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from coarlib.history.factors import Factored, Looked, Outer, together
from coarlib.history.inputs import Inputs, call, number_of
from coarlib.history.parameters import Tensors
from coarlib.history.positions import only_positions_read


@dataclass(frozen=True)
class Stack:
    """Z parameters θ, or Z segments θ + αΔ with an α for every row.

    Attributes
    ----------
    theta : {name: [Z, *shape]}
    delta : {name: [Z, *shape]}, optional
    alpha : [Z, R], optional
        With ``delta``.
    """

    theta: Tensors
    delta: Tensors = field(default_factory=dict)
    alpha: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return Z."""
        return len(next(iter(self.theta.values())))


class StackedModel:
    """A model whose trained tensors are stacks.

    Parameters
    ----------
    model : nn.Module
    names : {id of a trained tensor: its name}
    """

    def __init__(self, model: nn.Module, names: dict[int, str]) -> None:
        self._model, self._names = model, names

    @classmethod
    def of(cls, model: nn.Module, trained: tuple[str, ...], inputs: Inputs) -> StackedModel | None:
        """Return it if a pass over ``inputs`` uses the trained tensors in no other way."""
        names = {id(p): name for name, p in model.named_parameters() if name in trained}
        found = cls(only_positions_read(model, inputs), names)
        with _Watch(found._names) as watch, torch.no_grad():
            call(found._model, {}, inputs)
        return None if watch.elsewhere else found

    def outputs(self, stack: Stack, inputs: Inputs) -> torch.Tensor:
        """Return the model's outputs ``[Z · R, ...]`` on inputs ``[Z · R, ...]``."""
        with _Replaced(self._names, stack):
            return call(self._model, {}, inputs)

    def gradients(
        self,
        stack: Stack,
        inputs: Inputs,
        values: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, Outer]:
        """Differentiate ``values(outputs)`` [Z · R, K] with respect to each row's tensors.

        Tensors that are not used have no entry.
        """
        leaves = {name: v.detach().requires_grad_() for name, v in stack.theta.items()}
        with torch.enable_grad(), _Replaced(self._names, replace(stack, theta=leaves)) as taps:
            found = values(call(self._model, {}, inputs))
        edges = [tap.edge for tap in taps.found if tap.edge is not None]
        if found.shape[1] == 1:
            deltas = torch.autograd.grad(found.sum(), edges, allow_unused=True)
            deltas = tuple(None if delta is None else delta[None] for delta in deltas)
        else:
            basis = torch.eye(found.shape[1], dtype=found.dtype, device=found.device)
            basis = basis[:, None].expand(-1, len(found), -1)
            deltas = torch.autograd.grad(
                found, edges, basis, is_grads_batched=True, allow_unused=True
            )
        parts: dict[str, list[Outer]] = {}
        rows = number_of(inputs) // len(stack)
        for tap, delta in zip(taps.found, deltas, strict=True):
            for name, own in () if delta is None else tap.gradients(len(stack), rows, delta):
                parts.setdefault(name, []).append(own)
        return {name: together(some) for name, some in parts.items()}


@dataclass(frozen=True)
class _Tap:
    """One call of a layer: what went in, and where the derivative of what comes out is found."""

    weight: str | None
    bias: str | None
    inputs: torch.Tensor
    count: int | None = None
    """Entries of an embedding."""
    edge: GradientEdge | None = None

    def gradients(self, updates: int, rows: int, delta: torch.Tensor) -> list[tuple[str, Outer]]:
        left = delta.reshape(len(delta), updates, rows, -1, delta.shape[-1])
        found: list[tuple[str, Outer]] = []
        if self.count is not None:
            tokens = self.inputs.reshape(updates, rows, -1)
            return [(str(self.weight), Looked(left, tokens, self.count))]
        if self.weight is not None:
            right = self.inputs.detach().reshape(updates, rows, -1, self.inputs.shape[-1])
            found.append((self.weight, Factored(left, right)))
        if self.bias is not None:
            found.append((self.bias, Factored(left, None)))
        return found


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Name the arguments of ``F.linear``."""
    return input, weight, bias


def _embedding(  # noqa: PLR0917
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Name the arguments of ``F.embedding``; None where it does more than look up."""
    plain = padding_idx is None and max_norm is None
    return (input, weight) if plain and not scale_grad_by_freq and not sparse else None


class _Watch(TorchFunctionMode):
    """Notes trained tensors that anything but one kind of layer computes with."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self._places: dict[str, Any] = {}
        self.elsewhere: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._names]
        found = func(*args, **kwargs)
        if given and any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(found)):
            allowed: tuple[Any, ...] = ()
            if func is F.linear:
                allowed = _linear(*args, **kwargs)[1:]
            elif func is F.embedding:
                allowed = (_embedding(*args, **kwargs) or (None,))[1:]
            places = {id(tensor): (func, place) for place, tensor in enumerate(allowed)}
            for leaf in given:
                name, place = self._names[id(leaf)], places.get(id(leaf))
                if place is None or self._places.setdefault(name, place) != place:
                    self.elsewhere.add(name)
        return found


class _Replaced(TorchFunctionMode):
    """Computes linear layers and embeddings with a stack, and taps them."""

    def __init__(self, names: dict[int, str], stack: Stack) -> None:
        super().__init__()
        self._names, self._stack = names, stack
        self.found: list[_Tap] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*_linear(*args, **kwargs))
        if func is F.embedding:
            named = _embedding(*args, **kwargs)
            if named is not None and id(named[1]) in self._names:
                return self._embedding(*named)
        return func(*args, **kwargs)

    def _linear(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        names = self._names.get(id(weight)), self._names.get(id(bias))
        if names == (None, None):
            return F.linear(inputs, weight, bias)
        theta, delta = self._stack.theta, self._stack.delta
        rows = inputs.reshape(len(self._stack), -1, inputs.shape[-1])
        own = [t if n is None else theta[n] for n, t in zip(names, (weight, bias), strict=True)]
        found = _product(rows, *own)
        if self._stack.alpha is not None:
            moves = [None if name is None else delta[name] for name in names]
            found = _along(found, self._stack.alpha, _product(rows, *moves))
        self._tap(_Tap(*names, inputs), found)
        return found.reshape(*inputs.shape[:-1], found.shape[-1])

    def _embedding(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        name = self._names[id(weight)]
        count = len(weight)
        rows = tokens.reshape(len(self._stack), -1)
        rows = rows + count * torch.arange(len(rows), device=rows.device)[:, None]
        found = F.embedding(rows, self._stack.theta[name].flatten(0, 1))
        if self._stack.alpha is not None:
            moved = F.embedding(rows, self._stack.delta[name].flatten(0, 1))
            found = _along(found, self._stack.alpha, moved)
        self._tap(_Tap(name, None, tokens, count), found)
        return found.reshape(*tokens.shape, weight.shape[1])

    def _tap(self, tap: _Tap, outputs: torch.Tensor) -> None:
        # An edge stays right where the outputs are changed in place, before views of them are.
        if outputs.requires_grad:
            self.found.append(replace(tap, edge=get_gradient_edge(outputs)))


def _product(
    rows: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``weight rows + bias``, [Z, R · T, out]; those that are no stacks are shared."""
    shared = weight is not None and weight.dim() == 2
    added = bias[:, None] if bias is not None and bias.dim() == 2 else bias
    if weight is None:
        return torch.zeros(()) if added is None else added
    if shared or added is None:
        found = rows @ weight.mT
        return found if added is None else found + added
    return torch.baddbmm(added, rows, weight.mT)


def _along(start: torch.Tensor, alpha: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Return ``start + α moved``, [Z, R · T, width], α [Z, R] a row."""
    positions = start.shape[1] // alpha.shape[1]
    return torch.addcmul(start, alpha.repeat_interleave(positions, 1)[..., None], moved)

"""What is explained: outputs of the model on test points, and their derivatives along a step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.func import grad, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coarlib.errors import HistoryError, first_line, nearest
from coarlib.history.factors import Outer
from coarlib.history.inputs import Inputs, as_inputs, call, each, number_of
from coarlib.history.parameters import Tensors
from coarlib.history.stacked import Stack, StackedModel

Query = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(the model's output on one point, its target) -> a number or [K] numbers."""


def _all(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return outputs.reshape(-1)


def _logit(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return outputs.gather(-1, target.reshape(1))


def _log_probability(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return _logit(F.log_softmax(outputs, -1), target)


def _contrast(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return _logit(outputs, target[0]) - _logit(outputs, target[1])


def _margin(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    others = outputs.scatter(-1, target.reshape(1), -torch.inf)
    return _logit(outputs, target) - others.amax(-1, keepdim=True)


def _log_odds(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    others = outputs.scatter(-1, target.reshape(1), -torch.inf)
    return _logit(outputs, target) - others.logsumexp(-1, keepdim=True)


QUERIES = MappingProxyType(
    {
        "all": _all,
        "logit": _logit,
        "log_probability": _log_probability,
        "contrast": _contrast,
        "margin": _margin,
        "log_odds": _log_odds,
    }
)
"""``log_odds`` is COAR's margin, against the log-sum-exp of the others; ``contrast`` takes targets
``[N, 2]``: the output of the first minus that of the second."""

AT_ONCE = 64
"""Test points that are looked at together before anything is computed of them."""


class Queries:
    """K outputs of a model on N test points, as functions of the trained parameters.

    Parameters
    ----------
    model : nn.Module
    inputs [N, ...], targets [N, ...]
    output : str or Query
        A name of :data:`QUERIES` or a differentiable function of one point's output.

    Raises
    ------
    HistoryError
        If the output is unknown, or there is no test point.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: torch.Tensor,
        output: str | Query = "all",
    ) -> None:
        if isinstance(output, str):
            if output not in QUERIES:
                raise HistoryError(f"unknown output {output}{nearest(output, QUERIES)}")
            output = QUERIES[output]
        if not callable(output):
            raise HistoryError(f"output must be a name or a function, not {output!r}")
        self._inputs, self._targets = as_inputs(inputs), targets
        if len(self) != len(targets):
            raise HistoryError(f"there are {len(self)} test inputs and {len(targets)} targets")
        if not len(self):
            raise HistoryError("there are no test points; give at least one")
        self._model, self._output = model, output

    def __len__(self) -> int:
        return number_of(self._inputs)

    def take(self, points: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return inputs and targets of some points; N + n is point n once more."""
        where = points % len(self)
        return each(lambda t: t[where], self._inputs), self._targets[where]

    def _of_outputs(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._output(outputs, target).reshape(-1)

    def _of_one(self, parameters: Tensors, one: Inputs, target: torch.Tensor) -> torch.Tensor:
        return self._of_outputs(self._call_one(parameters, one), target)

    def _call_one(self, parameters: Tensors, one: Inputs) -> torch.Tensor:
        outputs = call(self._model, parameters, each(lambda t: t[None], one))
        return each(operator.itemgetter(0), outputs)

    def _of_batch(self, parameters: Tensors, points: torch.Tensor) -> torch.Tensor:
        inputs, targets = self.take(points)
        outputs = call(self._model, parameters, inputs)
        return vmap(self._of_outputs)(outputs, targets)

    def values(self, theta: Tensors, points: torch.Tensor) -> torch.Tensor:
        """Return the outputs ``[n, K]`` of some points."""
        with torch.no_grad():
            return self._of_batch(theta, points)

    def slopes(self, theta: Tensors, delta: Tensors, points: torch.Tensor) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` at θ by forward mode, ``[n, K]``."""
        along = jvp(lambda part: self._of_batch(part, points), (theta,), (delta,))[1]
        return along.detach()

    def value_along(
        self, theta: Tensors, delta: Tensors, alpha: torch.Tensor, *point: Any
    ) -> torch.Tensor:
        """Return ``f(x; θ + αΔ)`` of one point (input, target), ``[K]``."""
        return self._of_one(between(theta, delta, alpha), *point)

    def slope_along(
        self, theta: Tensors, delta: Tensors, alpha: torch.Tensor, *point: Any
    ) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` of one point at ``θ + αΔ``, ``[K]``."""
        # Not a derivative in α: forward mode of a number times a tensor is slow in torch.
        here = between(theta, delta, alpha)
        return jvp(lambda part: self._of_one(part, *point), (here,), (delta,))[1]

    def jacobian(
        self, moving: Tensors, fixed: Tensors, points: torch.Tensor, weight: torch.Tensor
    ) -> Tensors:
        """Return ``w_n ∂f/∂θ`` of some points at one θ, ``{name: [n, K, *shape]}``."""
        derivatives = vmap(self._derivative, in_dims=(None, None, 0, 0, 0))
        return derivatives(moving, fixed, weight, *self.take(points))

    def jacobian_at(
        self,
        theta: Tensors,
        delta: Tensors,
        moving: tuple[str, ...],
        place: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> Tensors:
        """Return ``w_m ∂f/∂θ`` of point m at ``θ + α_m Δ``, ``{name: [m, K, *shape]}``.

        ``place`` is α, w and the points, ``[m]`` each.
        """
        alpha, weight, points = place

        def one(a: torch.Tensor, w: torch.Tensor, x: Any, y: torch.Tensor) -> Tensors:
            here = between(theta, delta, a)
            part = {name: here.pop(name) for name in moving}
            return self._derivative(part, here, w, x, y)

        return vmap(one)(alpha, weight, *self.take(points))

    def _derivative(
        self,
        moving: Tensors,
        fixed: Tensors,
        weight: torch.Tensor,
        one: Inputs,
        target: torch.Tensor,
    ) -> Tensors:
        def of_moving(part: Tensors) -> torch.Tensor:
            return weight * self._of_one({**fixed, **part}, one, target)

        if self.num_outputs == 1:
            found = grad(lambda part: of_moving(part).sum())(moving)
            return {name: values[None] for name, values in found.items()}
        return jacrev(of_moving)(moving)

    def values_of_stack(
        self, model: StackedModel, stack: Stack, points: torch.Tensor
    ) -> torch.Tensor:
        """Return the outputs ``[Z · R, K]`` of ``points`` [Z · R] at the stack's parameters."""
        inputs, targets = self.take(points)
        with torch.no_grad():
            return vmap(self._of_outputs)(model.outputs(stack, inputs), targets)

    def slopes_of_stack(
        self, model: StackedModel, stack: Stack, points: torch.Tensor
    ) -> torch.Tensor:
        """Return their derivatives in α, ``⟨∂f/∂θ, Δ⟩`` at ``θ + αΔ``, ``[Z · R, K]``."""

        def values(alpha: torch.Tensor) -> torch.Tensor:
            return self.values_of_stack(model, replace(stack, alpha=alpha), points)

        alpha = stack.alpha
        if alpha is None:
            raise HistoryError("slopes are taken along segments; give the stack delta and alpha")
        return jvp(values, (alpha,), (torch.ones_like(alpha),))[1]

    def gradients_of_stack(
        self, model: StackedModel, stack: Stack, points: torch.Tensor, weight: torch.Tensor
    ) -> dict[str, Outer]:
        """Return the gradients of ``w f`` of ``points`` [Z · R]."""
        inputs, targets = self.take(points)

        def values(outputs: torch.Tensor) -> torch.Tensor:
            return vmap(self._of_outputs)(outputs, targets) * weight[:, None]

        return model.gradients(stack, inputs, values)

    num_outputs: int = 0

    def count_outputs(self, theta: Tensors) -> int:
        """Evaluate all points once; learn K from them, and keep it as ``num_outputs``.

        Raises
        ------
        HistoryError
            If the outputs of one cannot be computed, or are no finite numbers.
        """
        for points in torch.arange(len(self), device=self._targets.device).split(AT_ONCE):
            which = f"of test points {int(points[0])} to {int(points[-1])}"
            try:
                found = self.values(theta, points)
            except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
                raise HistoryError(
                    f"the outputs {which} cannot be computed ({first_line(error)}); check inputs, "
                    "targets and output"
                ) from error
            own = next(iter(theta.values())).dtype
            if found.dtype != own or not found.shape[1]:
                raise HistoryError(
                    f"output must give at least one number in {own}, as the parameters are, not "
                    f"{found.shape[1]} in {found.dtype}"
                )
            if not (finite := found.isfinite().all(1)).all():
                wrong = int(points[finite.logical_not().nonzero()[0, 0]])
                raise HistoryError(f"test point {wrong} has outputs that are not finite numbers")
        self.num_outputs = int(found.shape[1])
        return self.num_outputs

    def bytes_of_one(self, theta: Tensors) -> int:
        """Return the bytes that evaluating one point writes, views included."""
        return self._bytes_of(theta, 1)

    def bytes_of_another(self, theta: Tensors) -> int:
        """Return the bytes that one more point writes; views of parameters are written once."""
        return self._bytes_of(theta, 2) - self._bytes_of(theta, 1)

    def _bytes_of(self, theta: Tensors, points: int) -> int:
        with _WrittenBytes() as written:
            self.values(theta, torch.zeros(points, dtype=torch.int64))
        return written.count


class _WrittenBytes(TorchDispatchMode):
    """Counts the bytes of everything that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.count += leaf.numel() * leaf.element_size()
        return found


def between(theta: Tensors, delta: Tensors, alpha: torch.Tensor) -> Tensors:
    """Return θ + αΔ."""
    return {name: values + alpha * delta[name] for name, values in theta.items()}

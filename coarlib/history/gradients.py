"""Gradients of the training loss: of a batch, of its regulariser, and of every sample at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from coarlib.errors import HistoryError
from coarlib.history.factors import Outer
from coarlib.history.inputs import Inputs, call, each
from coarlib.history.parameters import Tensors
from coarlib.history.stacked import Stack, StackedModel
from coarlib.history.training import TrainingLoss


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Use the attention kernels that have forward-mode and batched derivatives.

    Raises
    ------
    HistoryError
        If the model draws random numbers, which no module of it says (``F.dropout``), or has an
        operation that torch cannot differentiate so.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        reason = str(error).split(" because ", maxsplit=1)[0].split("\n", maxsplit=1)[0]
        raise HistoryError(
            f"torch cannot differentiate this model as it has to be ({reason}); write that "
            "operation in others that it can"
        ) from error
    except RuntimeError as error:
        if "called random operation" not in str(error):
            raise
        raise HistoryError(
            "the model draws random numbers (functional dropout, say), which a history does not "
            "hold; train it without, with a rate of 0"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of the training loss with respect to some tensors of the model.

    Attributes
    ----------
    model : nn.Module
        Called as ``model(inputs)``.
    loss : TrainingLoss
    """

    model: nn.Module
    loss: TrainingLoss

    def losses(self, theta: Tensors, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        """Return each sample's loss of a batch, [B]."""
        with self.loss.precision(targets.device):
            return self._of_outputs(call(self.model, theta, inputs), targets)

    def _of_outputs(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return vmap(lambda o, t: self.loss.function(each(lambda v: v[None], o), t[None]))(
            outputs, targets
        )

    def per_sample(
        self,
        moving: Tensors,
        fixed: Tensors,
        inputs: Inputs,
        targets: torch.Tensor,
    ) -> Tensors:
        """Return the gradient of each sample's loss.

        Parameters
        ----------
        moving, fixed : tensors by name
            Derivatives are taken with respect to ``moving``; ``fixed`` are the other parameters.
        inputs [B, ...], targets [B, ...]

        Returns
        -------
        dict of name to [B, *shape]
        """
        gradient = vmap(grad(self._of_one), in_dims=(None, None, 0, 0), randomness="error")
        with differentiable_attention():
            return {k: v.detach() for k, v in gradient(moving, fixed, inputs, targets).items()}

    def weighted_sum(
        self,
        moving: Tensors,
        fixed: Tensors,
        inputs: Inputs,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> Tensors:
        """Return the gradient of Σ_i weights_i · loss_i, ``{name: [*shape]}``, by one backward."""

        def total(part: Tensors) -> torch.Tensor:
            return (self.losses({**fixed, **part}, inputs, targets) * weights).sum()

        with differentiable_attention():
            return {k: v.detach() for k, v in grad(total)(moving).items()}

    def of_stack(
        self,
        model: StackedModel,
        stack: Stack,
        inputs: Inputs,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> dict[str, Outer]:
        """Return the gradients of the weighted losses of ``[Z · B, ...]`` samples, as factors."""

        def values(outputs: torch.Tensor) -> torch.Tensor:
            return (self._of_outputs(outputs, targets) * weights)[:, None]

        with differentiable_attention():
            return model.gradients(stack, inputs, values)

    def _of_one(
        self, moving: Tensors, fixed: Tensors, one: Inputs, target: torch.Tensor
    ) -> torch.Tensor:
        with self.loss.precision(target.device):
            outputs = call(self.model, {**fixed, **moving}, each(lambda t: t[None], one))
            return self.loss.function(outputs, target[None])

    def regulariser(self, moving: Tensors, fixed: Tensors) -> Tensors | None:
        """Return the gradient of the loss regulariser, ``{name: [*shape]}``; None without one."""
        penalty = self.loss.regulariser
        if penalty is None:
            return None
        of_moving: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] = lambda part: penalty(  # noqa: E731
            {**fixed, **part}
        )
        return {k: v.detach() for k, v in grad(of_moving)(moving).items()}

    def batch(
        self,
        parameters: Tensors,
        inputs: Inputs,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> dict[str, torch.Tensor | None]:
        """Return the gradient of the whole objective on a batch (None where there is none)."""
        leaves = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        with torch.enable_grad():
            with self.loss.precision(targets.device):
                outputs = call(self.model, leaves, inputs)
                value = self.loss.of_batch(outputs, targets, leaves, weights)
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return dict(zip(leaves, found, strict=True))

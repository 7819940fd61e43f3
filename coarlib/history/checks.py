"""Comparing the gradients that training uses with the objective that was declared."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.history.gradients import SampleGradients
from coarlib.history.inputs import Inputs, each
from coarlib.history.parameters import ParameterTable, Tensors
from coarlib.history.training import Samples

TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
AUTOCAST_TOLERANCE = 0.03
"""A batch and its samples one by one are rounded differently, in some 8 bits."""
CHUNK_BYTES = 128 * 2**20
_MEND = (
    "check that the sample numbers are those of the batch, that the samples are given without "
    "random augmentation, that loss, reduction and regulariser are those of the training loop, "
    "and that gradients are only changed by torch.nn.utils.clip_grad_norm_"
)


class GradientCheck:
    """Refuses, while recording, a run whose gradients are not those of the declared loss.

    Parameters
    ----------
    gradients : SampleGradients
    samples : Samples
    every : int
        Steps between two checks; 0 for the first step only.
    """

    def __init__(self, gradients: SampleGradients, samples: Samples, every: int) -> None:
        self.gradients, self._samples, self._every = gradients, samples, every
        self._first = True

    def due(self, step: int) -> bool:
        """Whether to check at this step."""
        return self._first or (self._every > 0 and step % self._every == 0)

    def at(
        self,
        step: int,
        table: ParameterTable,
        parameters: Sequence[torch.Tensor],
        numbers: NDArray[np.int64],
        weights: NDArray[np.float64] | None,
        *,
        clip: Sequence[float],
    ) -> None:
        """Check the gradients in ``parameters``; see :meth:`due`.

        Parameters
        ----------
        weights : float64 [B] or None
            None where the loss function's own reduction holds.

        Raises
        ------
        HistoryError
        """
        device = parameters[0].device
        inputs, targets = self._samples.take(numbers, device)
        named = dict(zip(table.names, parameters, strict=True))
        given = None if weights is None else torch.as_tensor(weights, device=device)
        expected = self.gradients.batch(named, inputs, targets, given)
        actual = {name: (p.grad, c) for (name, p), c in zip(named.items(), clip, strict=True)}
        self._compare(step, expected, actual)
        if self._first:
            each = weights
            if each is None:
                each = np.full(len(numbers), self.gradients.loss.weight(len(numbers)))
            summed = self._sum_of_samples(named, inputs, targets, each)
            self._compare(step, summed, actual)
            self._first = False

    def _compare(
        self,
        step: int,
        expected: dict[str, torch.Tensor | None],
        actual: dict[str, tuple[torch.Tensor | None, float]],
    ) -> None:
        difference = norm = 0.0
        for name, (gradient, scale) in actual.items():
            wanted = expected[name]
            if gradient is None:
                continue
            scaled = gradient * 0 if wanted is None else wanted * scale
            difference += float((gradient - scaled).double().square().sum())
            norm += float(gradient.double().square().sum())
        dtype = next(iter(actual.values()))[0]
        tolerance = TOLERANCE.get(dtype.dtype if dtype is not None else torch.float32, 2e-3)
        if self.gradients.loss.autocast is not None:
            tolerance = AUTOCAST_TOLERANCE
        if not difference**0.5 <= tolerance * norm**0.5 + 1e-12:
            share = (difference / norm) ** 0.5 if norm else float("inf")
            raise HistoryError(
                f"at update {step} the gradient differs from that of the declared loss over the "
                f"declared batch by {share:.2g} of its norm; {_MEND}"
            )

    def _sum_of_samples(
        self,
        named: Tensors,
        inputs: Inputs,
        targets: torch.Tensor,
        weights: NDArray[np.float64],
    ) -> dict[str, torch.Tensor | None]:
        moving = {name: parameter.detach() for name, parameter in named.items()}
        total: dict[str, torch.Tensor | None] = {k: torch.zeros_like(v) for k, v in moving.items()}
        size = sum(v.numel() * v.element_size() for v in moving.values())
        chunk = max(1, CHUNK_BYTES // size)
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            some = each(operator.itemgetter(part), inputs)
            try:
                found = self.gradients.per_sample(moving, {}, some, targets[part])
            except RuntimeError as error:
                reason = str(error).split("\n", maxsplit=1)[0]
                raise HistoryError(
                    f"the gradient of single samples cannot be computed for this model ({reason})"
                ) from error
            for name, gradients in found.items():
                weight = torch.as_tensor(weights[part], dtype=gradients.dtype).to(gradients.device)
                total[name] = total[name] + torch.tensordot(weight, gradients, 1)
        penalty = self.gradients.regulariser(moving, {})
        for name, gradient in (penalty or {}).items():
            total[name] = total[name] + gradient  # type: ignore[operator]
        return total

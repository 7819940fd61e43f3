"""The gradients that enter an update: the samples', the regulariser's, the decayed parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.history.gradients import SampleGradients
from coarlib.history.inputs import each
from coarlib.history.parameters import Tensors
from coarlib.history.training import Samples
from coarlib.history.walk import Update

SUMMED_AT_ONCE = 1024


@dataclass(frozen=True)
class Entering:
    """Gradients that enter one update, flat and clipped.

    Attributes
    ----------
    source : {"data", "weight_decay", "regulariser"}
    gradient : {name: [B, p]}
        Sums to the source's part of u.
    samples : int64 [B] or None
    """

    source: str
    gradient: Tensors
    samples: NDArray[np.int64] | None


class Sources:
    """Computes what enters an update.

    Parameters
    ----------
    gradients : SampleGradients
    samples : Samples
    tracked : tuple of str
    per_sample : bool
        Give the gradient of each sample, not their sum.
    chunk_bytes : int
        Memory for the per-sample gradients that are computed at once.
    """

    def __init__(
        self,
        gradients: SampleGradients,
        samples: Samples,
        tracked: tuple[str, ...],
        per_sample: bool,
        chunk_bytes: int,
    ) -> None:
        self._gradients, self._samples, self._tracked = gradients, samples, tracked
        self._per_sample, self._chunk_bytes = per_sample, chunk_bytes

    def of(self, step: Update, only: NDArray[np.int64] | None = None) -> Iterator[Entering]:
        """Yield everything that enters one update.

        Parameters
        ----------
        step : Update
        only : int64, optional
            Restrict the data to these samples (ascending), and leave out the other sources.
        """
        fixed = dict(step.theta)
        active = [
            n for n in self._tracked if step.coefficients[n].take or step.coefficients[n].direct
        ]
        moving = {name: fixed.pop(name) for name in active}
        if moving:
            yield from self._data(step, moving, fixed, only)
        if only is None:
            yield from self.without_data(step)

    def without_data(self, step: Update) -> Iterator[Entering]:
        """Yield the regulariser and the coupled weight decay."""
        fixed = dict(step.theta)
        moving = {n: fixed.pop(n) for n in self._tracked if step.coefficients[n].take}
        penalty = self._gradients.regulariser(moving, fixed) if moving else None
        if penalty is not None:
            scaled = {n: (v * step.clip[n]).reshape(1, -1) for n, v in penalty.items()}
            yield Entering("regulariser", scaled, None)
        decays = {n: u.couple for n, u in step.coefficients.items() if u.couple}
        if decays:
            flat = {n: (step.theta[n] * c).reshape(1, -1) for n, c in decays.items()}
            yield Entering("weight_decay", flat, None)

    def _data(
        self, step: Update, moving: Tensors, fixed: Tensors, only: NDArray[np.int64] | None
    ) -> Iterator[Entering]:
        numbers, weights = step.record.samples, step.record.weights
        if only is not None:
            chosen = np.isin(numbers, only)
            numbers, weights = numbers[chosen], weights[chosen]
        if not len(numbers):
            return
        some = next(iter(moving.values()))
        size = sum(values.numel() for values in moving.values()) * some.element_size()
        chunk = max(1, self._chunk_bytes // size) if self._per_sample else SUMMED_AT_ONCE
        total: Tensors = {}
        for begin in range(0, len(numbers), chunk):
            part = slice(begin, begin + chunk)
            inputs, targets = self._samples.take(numbers[part], some.device)
            inputs = each(lambda t: t.to(some.dtype) if t.is_floating_point() else t, inputs)
            weight = torch.as_tensor(weights[part], dtype=some.dtype, device=some.device)
            if self._per_sample:
                found = self._gradients.per_sample(moving, fixed, inputs, targets)
                flat = {
                    n: v.reshape(len(weight), -1) * (weight * step.clip[n])[:, None]
                    for n, v in found.items()
                }
                yield Entering("data", flat, numbers[part])
                continue
            summed = self._gradients.weighted_sum(moving, fixed, inputs, targets, weight)
            flat = {n: (v * step.clip[n]).reshape(1, -1) for n, v in summed.items()}
            total = {n: total[n] + v if n in total else v for n, v in flat.items()}
        if total:
            yield Entering("data", total, None)

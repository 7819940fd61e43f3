"""The gradients that enter updates: the samples', the regulariser's, the decayed parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.history.factors import Full, Gradients
from coarlib.history.gradients import SampleGradients
from coarlib.history.inputs import each
from coarlib.history.parameters import Tensors
from coarlib.history.stacked import Stack, StackedModel
from coarlib.history.training import Samples
from coarlib.history.walk import Block, Update

SUMMED_AT_ONCE = 1024


@dataclass(frozen=True)
class Entering:
    """Gradients that enter some updates of a block, clipped.

    Attributes
    ----------
    source : {"data", "weight_decay", "regulariser"}
    gradient : {name: Gradients [Z, B, p]}
        Sums over B to the source's part of u.
    updates : slice
        Which Z updates of the block.
    samples : int64 [Z, B] or None
        Where batches differ in length, short ones are filled up with gradients of zero.
    """

    source: str
    gradient: Mapping[str, Gradients]
    updates: slice
    samples: NDArray[np.int64] | None = None

    def within(self, updates: slice) -> Entering | None:
        """Return what enters some of the block's updates, which become a block; None if nothing."""
        first, last = max(self.updates.start, updates.start), min(self.updates.stop, updates.stop)
        if first >= last:
            return None
        own = slice(first - self.updates.start, last - self.updates.start)
        gradient = {name: values.part(own) for name, values in self.gradient.items()}
        samples = None if self.samples is None else self.samples[own]
        at = slice(first - updates.start, last - updates.start)
        return Entering(self.source, gradient, at, samples)


class Sources:
    """Computes what enters updates.

    Parameters
    ----------
    gradients : SampleGradients
    samples : Samples
    tracked : tuple of str
    per_sample : bool
        Give the gradient of each sample, not their sum.
    chunk_bytes : int
        Memory for the gradients that are computed at once.
    stacked : StackedModel, optional
        To compute the gradients of several updates together.
    row_bytes : int
        With ``stacked``: memory that one sample takes.
    """

    def __init__(
        self,
        gradients: SampleGradients,
        samples: Samples,
        tracked: tuple[str, ...],
        *,
        per_sample: bool,
        chunk_bytes: int,
        stacked: StackedModel | None = None,
        row_bytes: int = 1,
    ) -> None:
        self._gradients, self._samples, self._tracked = gradients, samples, tracked
        self._per_sample, self._chunk_bytes = per_sample, chunk_bytes
        self._stacked, self._rows = stacked, max(1, chunk_bytes // row_bytes)

    def of(self, block: Block, only: NDArray[np.int64] | None = None) -> Iterator[Entering]:
        """Yield everything that enters the updates of a block.

        Parameters
        ----------
        block : Block
        only : int64, optional
            Restrict the data to these samples (ascending), and leave out the other sources.
        """
        if self._stacked is not None:
            yield from self._together(self._stacked, block, only)
        else:
            for place, step in enumerate(block.updates):
                yield from self._alone(step, slice(place, place + 1), only)
        if only is None:
            yield from self.without_data(block)

    def of_parts(self, block: Block, parts: Sequence[slice]) -> Iterator[Iterable[Entering]]:
        """Yield what :meth:`of` gives for each of some neighbouring parts of a block.

        As many go through the model together as memory allows.
        """
        longest = max((len(step.record.samples) for step in block.updates), default=0)
        most = self._rows // max(1, longest) if self._stacked is not None else 1
        at_once = max(1, most // max(part.stop - part.start for part in parts))
        for some in (parts[b : b + at_once] for b in range(0, len(parts), at_once)):
            first, last = min(part.start for part in some), max(part.stop for part in some)
            found: Iterable[Entering] = self.of(block.part(slice(first, last)))
            if len(some) == 1:
                yield found
                continue
            found = list(found)
            for part in some:
                own = (e.within(slice(part.start - first, part.stop - first)) for e in found)
                yield [entering for entering in own if entering is not None]

    def without_data(self, block: Block) -> Iterator[Entering]:
        """Yield the regulariser and the coupled weight decay."""
        for place, step in enumerate(block.updates):
            own = slice(place, place + 1)
            fixed = dict(step.theta)
            moving = {n: fixed.pop(n) for n in self._tracked if step.coefficients[n].take}
            penalty = self._gradients.regulariser(moving, fixed) if moving else None
            if penalty is not None:
                scaled = {n: _row(v * step.clip[n]) for n, v in penalty.items()}
                yield Entering("regulariser", scaled, own)
            decays = {n: u.couple for n, u in step.coefficients.items() if u.couple}
            if decays:
                decayed = {n: _row(step.theta[n] * c) for n, c in decays.items()}
                yield Entering("weight_decay", decayed, own)

    def _together(
        self, model: StackedModel, block: Block, only: NDArray[np.int64] | None
    ) -> Iterator[Entering]:
        """Yield the data's gradients of many updates at a time, as factors."""
        chosen = [_chosen(step, only) for step in block.updates]
        longest = max(len(numbers) for numbers, _ in chosen)
        samples = np.zeros((len(chosen), longest), np.int64)
        weights = np.zeros((len(chosen), longest))
        for row, (numbers, own) in enumerate(chosen):
            samples[row, : len(numbers)], weights[row, : len(numbers)] = numbers, own
        at_once = min(longest, self._rows)
        for first in range(0, len(chosen), step := max(1, self._rows // max(1, longest))):
            updates = slice(first, min(first + step, len(chosen)))
            stack = Stack({name: values[updates] for name, values in block.theta.items()})
            clips = self._clips(block.updates[updates])
            total: dict[str, Gradients] = {}
            for begin in range(0, longest, max(1, at_once)):
                part = updates, slice(begin, begin + at_once)
                found = self._of_samples(model, stack, samples[part], weights[part])
                for name in found.keys() & clips:
                    found[name] = found[name].scaled(clips[name])
                if self._per_sample:
                    yield Entering("data", found, updates, samples[part])
                    continue
                for name, gradients in found.items():
                    before = total[name].flat() if name in total else 0.0
                    total[name] = Full(gradients.summed().flat() + before)
            if total:
                yield Entering("data", total, updates)

    def _of_samples(
        self,
        model: StackedModel,
        stack: Stack,
        samples: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> dict[str, Gradients]:
        some = next(iter(stack.theta.values()))
        inputs, targets = self._take(samples.reshape(-1), some)
        weight = torch.as_tensor(weights.reshape(-1), dtype=some.dtype, device=some.device)
        found = self._gradients.of_stack(model, stack, inputs, targets, weight)
        return {name: found[name] for name in self._tracked if name in found}

    def _clips(self, updates: list[Update]) -> Tensors:
        """Return each tensor's factors by clipping [Z], where any is not 1."""
        found = {}
        for name in self._tracked:
            factors = [step.clip[name] for step in updates]
            if set(factors) != {1.0}:
                found[name] = updates[0].theta[name].new_tensor(factors)
        return found

    def _take(self, numbers: NDArray[np.int64], like: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs, targets = self._samples.take(numbers, like.device)
        return each(lambda t: t.to(like.dtype) if t.is_floating_point() else t, inputs), targets

    def _alone(
        self, step: Update, place: slice, only: NDArray[np.int64] | None
    ) -> Iterator[Entering]:
        """Yield the data's gradients of one update, in full."""
        fixed = dict(step.theta)
        active = [
            n for n in self._tracked if step.coefficients[n].take or step.coefficients[n].direct
        ]
        moving = {name: fixed.pop(name) for name in active}
        numbers, weights = _chosen(step, only)
        if not len(numbers) or not moving:
            return
        some = next(iter(moving.values()))
        size = sum(values.numel() for values in moving.values()) * some.element_size()
        chunk = max(1, self._chunk_bytes // size) if self._per_sample else SUMMED_AT_ONCE
        total: Tensors = {}
        for begin in range(0, len(numbers), chunk):
            part = slice(begin, begin + chunk)
            inputs, targets = self._take(numbers[part], some)
            weight = torch.as_tensor(weights[part], dtype=some.dtype, device=some.device)
            if self._per_sample:
                found = self._gradients.per_sample(moving, fixed, inputs, targets)
                flat = {
                    n: v.reshape(len(weight), -1) * (weight * step.clip[n])[:, None]
                    for n, v in found.items()
                }
                full = {n: Full(v[None]) for n, v in flat.items()}
                yield Entering("data", full, place, numbers[None, part])
                continue
            summed = self._gradients.weighted_sum(moving, fixed, inputs, targets, weight)
            total = {n: total[n] + v if n in total else v for n, v in summed.items()}
        if total:
            yield Entering("data", {n: _row(v * step.clip[n]) for n, v in total.items()}, place)


def _chosen(
    step: Update, only: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return an update's samples, of ``only`` where given, and their weights."""
    numbers, weights = step.record.samples, step.record.weights
    if only is None:
        return numbers, weights
    chosen = np.isin(numbers, only)
    return numbers[chosen], weights[chosen]


def _row(values: torch.Tensor) -> Full:
    return Full(values.reshape(1, 1, -1))

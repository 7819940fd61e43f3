"""From the trained outputs back through every update to the weight of every training sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from coarlib.devices import float32_products, flushed_denormals
from coarlib.errors import HistoryError
from coarlib.history import RecordedRun
from coarlib.history.gradients import SampleGradients, differentiable_attention
from coarlib.history.inputs import each
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.walk import Update
from coarlib.metagradient.backward import (
    Derivatives,
    through_gradient,
    through_regulariser,
    unclip,
)
from coarlib.metagradient.tracing import Traced


def through_gradient_of(run: RecordedRun) -> Traced:
    """Return :func:`through_gradient` of a run's model and loss, traced where that is worth it."""
    return Traced(partial(through_gradient, SampleGradients(run.model, run.loss)))


@dataclass
class Sweep:
    """Reverse mode through one recorded run.

    Attributes
    ----------
    run : RecordedRun
    queries : Queries
    advance : callable
        Called after every update.
    through : callable, optional
        What :func:`through_gradient_of` makes of this run or one of the same model and loss.
    samples : int, optional
        How many samples of a batch go together; all by default.
    """

    run: RecordedRun
    queries: Queries
    advance: Callable[[], None]
    through: Callable[..., Any] | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        settings = self.run.walk.history.settings
        if settings.tracked != settings.table.names:
            raise HistoryError(
                "metagradients need the optimizer's state of all tensors; record without track="
            )
        if settings.is_window:
            raise HistoryError("metagradients need all updates of a run; record without window=")
        self._gradients = SampleGradients(self.run.model, self.run.loss)
        self._through = self.through or through_gradient_of(self.run)
        penalty = self.run.loss.regulariser
        self._penalty = None if penalty is None else Traced(partial(through_regulariser, penalty))
        trained, model = set(settings.table.names), self.run.model
        self._fixed = {
            name: tensor.detach()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in trained
        }

    def of(self, points: torch.Tensor) -> torch.Tensor:
        """Return the derivatives of some test points' outputs, ``[n, K, D]``.

        Entry i is the derivative with respect to a factor on sample i's loss in every batch that
        it was in, the weights of the others staying as they are.
        """
        with float32_products(), flushed_denormals():
            return self._of(points)

    def _of(self, points: torch.Tensor) -> torch.Tensor:
        walk = self.run.walk
        settings, last = walk.history.settings, walk.theta(walk.history.last)
        one = torch.ones(len(points), dtype=walk.dtype, device=walk.device)
        with differentiable_attention():
            outputs = self.queries.jacobian(last, {}, points, one)
        state = Derivatives.of(
            {name: values.flatten(0, 1).contiguous() for name, values in outputs.items()}
        )
        count = len(points) * self.queries.num_outputs
        found = one.new_zeros(count, settings.num_samples)
        for number in reversed(walk.numbers):
            self._back(walk.update(number, moments=True), state, found)
            self.advance()
        return found.view(len(points), self.queries.num_outputs, -1)

    def _back(self, update: Update, state: Derivatives, found: torch.Tensor) -> None:
        kind = self.run.walk.history.settings.kind
        numbers = update.record.samples
        inputs, targets = self.run.samples.take(numbers, found.device)
        batch = self.run.put(inputs), targets
        weights = torch.as_tensor(update.record.weights).to(found)
        plain: Tensors = {}
        if kind.adaptive or any(factor != 1.0 for factor in update.clip.values()):
            plain = self._gradient(update.theta, batch, weights)
        clipped = {name: values * update.clip[name] for name, values in plain.items()}
        direction = unclip(update, state.enter(kind, update, clipped), plain)
        # Cloned: forward mode would fill the whole row of which a view is a part.
        theta = {name: values.clone() for name, values in update.theta.items()}
        rows = direction, state.theta
        columns = torch.as_tensor(numbers).to(found.device)
        for part in _parts(len(numbers), self.samples):
            some = each(itemgetter(part), batch[0]), batch[1][part], weights[part]
            _, along = self._through(theta, self._fixed, some, rows)
            found.index_add_(1, columns[part], along * weights[part])
        if self._penalty is not None:
            self._penalty(theta, rows)
        state.leave(update)

    def _gradient(
        self, theta: Tensors, batch: tuple[Any, torch.Tensor], weights: torch.Tensor
    ) -> Tensors:
        found = self._gradients.weighted_sum(theta, {}, *batch, weights)
        penalty = self._gradients.regulariser(theta, {})
        return found if penalty is None else {n: v + penalty[n] for n, v in found.items()}


def _parts(count: int, most: int | None) -> list[slice]:
    """Cut ``count`` samples into parts of about the same length, ``most`` at the most."""
    if most is None or count <= most:
        return [slice(0, count)]
    size = -(-count // -(-count // most))
    return [slice(begin, begin + size) for begin in range(0, count, size)]

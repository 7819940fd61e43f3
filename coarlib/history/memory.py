"""A short run's history in memory, for explanations that train the runs they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from coarlib.history.optimizers import OptimizerKind
from coarlib.history.reading import State, StepRecord, digest_of
from coarlib.history.replay import snapshot
from coarlib.history.settings import Settings
from coarlib.identity import Identity


class MemoryHistory:
    """Updates, and every k-th state, of a run; written while it trains.

    Parameters
    ----------
    settings : Settings
        Of a whole run.
    optimizer : torch.optim.Optimizer
    parameters : sequence of tensors
        In the order of the table.
    """

    def __init__(
        self,
        settings: Settings,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
    ) -> None:
        self.settings, self.first, self.last = settings, 0, 0
        self._optimizer, self._parameters = optimizer, list(parameters)
        self._records: list[StepRecord] = []
        self._states: dict[int, State] = {}

    def before_step(self, record: StepRecord) -> None:
        """Note an update with its gradients in place; ``digest`` is filled in."""
        if record.number % self.settings.every == 0:
            self._keep(record.number)
        theta = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        self._records.append(replace(record, digest=digest_of(theta)))

    def finish(self) -> MemoryHistory:
        """Note the trained model."""
        self.last = len(self._records)
        self._keep(self.last)
        return self

    def _keep(self, number: int) -> None:
        kind: OptimizerKind = self.settings.kind
        self._states[number] = snapshot(self._optimizer, kind, self._parameters)

    def record(self, step: int) -> StepRecord:
        """Return update ``step`` without its tensors."""
        return self._records[step]

    def state(self, step: int) -> State | None:
        """Return the state before update ``step``, None if it is not kept."""
        return self._states.get(step)

    def ends(self) -> tuple[None, None]:
        """Both ends are among the states."""
        return None, None

    def describe_ends(self) -> tuple[str, str]:
        """Say which models the ends are."""
        return "the model before training", "the trained model"

    def content(self) -> str:
        """Digest everything in it that an explanation reads."""
        rows = [(r.samples, r.weights, r.hyper, r.clip, r.digest) for r in self._records]
        return Identity().add(rows, self._states[self.last].theta).hexdigest()

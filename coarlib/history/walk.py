"""Walking along a history in either direction, one update at a time, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch

from coarlib.errors import HistoryError
from coarlib.history.optimizers import Coefficients, coefficients_of, shrink_of
from coarlib.history.parameters import Tensors
from coarlib.history.reading import History, State, StepRecord
from coarlib.history.replay import Replay
from coarlib.history.settings import Settings


class AnyHistory(Protocol):
    """What an explanation needs of a history (on disk, or in memory)."""

    settings: Settings
    first: int
    last: int

    def record(self, step: int) -> StepRecord:
        """Return update ``step`` without its tensors."""

    def state(self, step: int) -> State | None:
        """Return the state before update ``step``, None if it is not kept."""

    def ends(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return θ at both ends of the run, None where the states hold it as it was."""

    def describe_ends(self) -> tuple[str, str]:
        """Say which models these are."""

    def content(self) -> str:
        """Digest everything in it that an explanation reads."""


@dataclass(frozen=True)
class Update:
    """One update with its tensors.

    Attributes
    ----------
    record : StepRecord
    theta, theta_next : tensors by name
        All trained parameters before and after.
    coefficients : dict of name to Coefficients
        Coefficients of the tracked tensors.
    clip : dict of name to float
    """

    record: StepRecord
    theta: Tensors
    theta_next: Tensors
    coefficients: dict[str, Coefficients]
    clip: dict[str, float]

    @property
    def number(self) -> int:
        """The update's number."""
        return self.record.number


class Walk:
    """Gives the updates of a history on a device and in a dtype.

    Parameters
    ----------
    history : AnyHistory
    device : torch.device
    dtype : torch.dtype
        Computations are made in it; parameters are converted.
    replay : Replay, optional
        Needed where not every state is kept.
    """

    def __init__(
        self,
        history: AnyHistory,
        device: torch.device,
        dtype: torch.dtype,
        replay: Replay | None = None,
    ) -> None:
        self.history, self.device, self.dtype = history, device, dtype
        self._replay = replay
        self._every = history.settings.every
        self._states: OrderedDict[int, State] = OrderedDict()
        self._table = history.settings.table
        self._tracked = self._table.subset(history.settings.tracked)

    @property
    def numbers(self) -> range:
        """The updates, in order."""
        return range(self.history.first, self.history.last)

    def theta(self, step: int) -> Tensors:
        """Return the parameters before update ``step``."""
        return self._table.views(self.flat(step))

    def flat(self, step: int) -> torch.Tensor:
        """Return the same as one row ``[P]``."""
        return self._state(step).theta

    def shrinks(self, number: int) -> dict[str, float]:
        """Return by how much decoupled weight decay shrinks each tracked tensor in an update."""
        record, kind = self.history.record(number), self.history.settings.kind
        rows = zip(self._table.names, self._table.groups, record.counts, strict=True)
        found = {name: shrink_of(kind, g, record.hyper, int(count)) for name, g, count in rows}
        return {name: found[name] for name in self._tracked.names}

    def update(self, number: int) -> Update:
        """Return update ``number``."""
        record = self.history.record(number)
        after = self._state(number + 1)
        moments = self._moments(after)
        kind, table = self.history.settings.kind, self._table
        coefficients, clips = {}, {}
        for name, group, count, clip in zip(
            table.names, table.groups, record.counts, record.clip, strict=True
        ):
            if name in moments:
                coefficients[name] = coefficients_of(
                    kind, group, record.hyper, int(count), moments[name]
                )
                clips[name] = float(clip)
        return Update(record, self.theta(number), table.views(after.theta), coefficients, clips)

    def ends(self) -> tuple[Tensors, Tensors]:
        """Return the parameters at both ends of the run as they were."""
        kept = self.history.ends()
        rows = [
            self.flat(number) if theta is None else theta.to(self.device, self.dtype)
            for number, theta in zip((self.history.first, self.history.last), kept, strict=True)
        ]
        first, last = (self._table.views(row) for row in rows)
        return first, last

    def prior_momentum(self) -> Tensors | None:
        """Return the momentum from before the first update; None where there was none."""
        state = self._state(self.history.first)
        if state.momentum is None or not state.momentum.any():
            return None
        views = self._table.views(state.momentum)
        return {name: views[name] for name in self._tracked.names}

    def _moments(self, state: State) -> dict[str, torch.Tensor | None]:
        if state.second_moment is None:
            return dict.fromkeys(self._tracked.names)
        whole = len(state.second_moment) == self._table.total
        views = (self._table if whole else self._tracked).views(state.second_moment)
        return {name: views[name] for name in self._tracked.names}

    def _state(self, step: int) -> State:
        if step not in self._states:
            self._load(step)
        self._states.move_to_end(step)
        return self._states[step]

    def _load(self, step: int) -> None:
        kept = self.history.state(step)
        if kept is not None:
            self._keep(step, kept)
            return
        if self._replay is None or not isinstance(self.history, History):
            raise HistoryError(
                f"the state before update {step} is not kept; give the training samples and loss "
                "so that it can be replayed"
            )
        first = self.history.first
        begin = first + (step - first) // self._every * self._every
        end = min(begin + self._every, self.history.last)
        for number, state in enumerate(self._replay.segment(self.history, begin, end), begin):
            self._keep(number, state)

    def _keep(self, step: int, state: State) -> None:
        def move(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.to(self.device, self.dtype)

        theta = state.theta.to(self.device, self.dtype)
        self._states[step] = State(theta, move(state.second_moment), move(state.momentum))
        while len(self._states) > self._every + 2:
            self._states.popitem(last=False)

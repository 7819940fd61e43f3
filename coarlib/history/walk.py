"""Walking along a history in either direction, one update at a time, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch

from coarlib.errors import HistoryError
from coarlib.history.optimizers import Coefficients, coefficients_of, shrink_of
from coarlib.history.parameters import Tensors
from coarlib.history.reading import AnyHistory, State, StepRecord
from coarlib.history.replay import Replay


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
    groups : tuple of int
        Parameter group of each tensor.
    momentum, second_moment : tensors by name
        After the update, where they were asked for.
    """

    record: StepRecord
    theta: Tensors
    theta_next: Tensors
    coefficients: dict[str, Coefficients]
    clip: dict[str, float]
    groups: tuple[int, ...]
    momentum: Tensors = field(default_factory=dict)
    second_moment: Tensors = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The update's number."""
        return self.record.number


@dataclass(frozen=True)
class Block:
    """Some updates in a row, S of them.

    Attributes
    ----------
    updates : list of Update
    theta, delta : {name: [S, *shape]}
        All trained parameters before each, and how they move.
    """

    updates: list[Update]
    theta: Tensors
    delta: Tensors

    def __len__(self) -> int:
        """How many updates there are."""
        return len(self.updates)

    def part(self, updates: slice) -> Block:
        """Return some of the updates."""
        theta, delta = ({n: v[updates] for n, v in x.items()} for x in (self.theta, self.delta))
        return Block(self.updates[updates], theta, delta)

    @property
    def numbers(self) -> range:
        """The updates' numbers."""
        return range(self.updates[0].number, self.updates[-1].number + 1)


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

    def update(self, number: int, moments: bool = False) -> Update:
        """Return update ``number``, with the optimizer's state after it where ``moments``."""
        record = self.history.record(number)
        after = self._state(number + 1)
        second_moments = self._moments(after)
        kind, table = self.history.settings.kind, self._table
        coefficients, clips = {}, {}
        for name, group, count, clip in zip(
            table.names, table.groups, record.counts, record.clip, strict=True
        ):
            if name in second_moments:
                coefficients[name] = coefficients_of(
                    kind, group, record.hyper, int(count), second_moments[name]
                )
                clips[name] = float(clip)
        theta, later = self.theta(number), table.views(after.theta)
        found = Update(record, theta, later, coefficients, clips, self._tracked.groups)
        if not moments or not kind.adaptive:
            return found
        second = {name: v for name, v in second_moments.items() if v is not None}
        return replace(found, momentum=self._momentum(found, after), second_moment=second)

    def block(self, numbers: range) -> Block:
        """Return some updates in a row."""
        updates, rows = [], [self.flat(numbers.start)]
        for number in numbers:
            updates.append(self.update(number))
            rows.append(self.flat(number + 1))
        path = torch.stack(rows)
        moved = path[1:] - path[:-1]
        return Block(updates, self._table.views(path[:-1]), self._table.views(moved))

    def _momentum(self, update: Update, after: State) -> Tensors:
        """Return Adam's momentum after an update: as kept, or from how far it moved."""
        if after.momentum is not None:
            return self._table.views(after.momentum)
        moved = {}
        for name, own in update.coefficients.items():
            step = update.theta[name] * (1 - own.shrink) - update.theta_next[name]
            through = torch.as_tensor(own.through).to(step)
            moved[name] = torch.where(through > 0, step / through, 0.0)
        return moved

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
        if self._replay is None:
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

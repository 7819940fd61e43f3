"""Replaying the updates between two kept states, checked by the digest of every step."""

from __future__ import annotations

import copy

import torch
from torch import nn

from coarlib.devices import flushed_denormals, flushes_denormals
from coarlib.errors import HistoryError
from coarlib.history.gradients import SampleGradients
from coarlib.history.optimizers import INACTIVE, SECOND_MOMENT_KEY, OptimizerKind
from coarlib.history.parameters import ParameterTable
from coarlib.history.reading import AnyHistory, State, StepRecord, digest_of
from coarlib.history.settings import Settings
from coarlib.history.training import Samples, TrainingLoss


class Replay:
    """Runs recorded updates again.

    Parameters
    ----------
    model : nn.Module
        In the mode it was trained in; copied.
    loss : TrainingLoss
        As in training: the same function on the same batch, so that gradients are equal bit for
        bit.
    samples : Samples
    tolerance : float
        Largest difference of a parameter to the next kept state that is accepted where digests
        differ (another device, another number of threads); 0 insists on equal bits.

    Attributes
    ----------
    deviation : float
        The largest such difference so far.
    """

    def __init__(
        self, model: nn.Module, loss: TrainingLoss, samples: Samples, tolerance: float = 0.0
    ) -> None:
        self._model = copy.deepcopy(model)
        self._gradients = SampleGradients(self._model, loss)
        self._samples, self._tolerance = samples, tolerance
        self._flushes = flushes_denormals()
        self.deviation = 0.0

    def segment(self, history: AnyHistory, begin: int, end: int) -> list[State]:
        """Return the states before updates ``begin … end``, both ends included.

        Raises
        ------
        HistoryError
            If the state before ``begin`` is not kept, or the replay leaves the recorded path.
        """
        state = history.state(begin)
        if state is None:
            raise HistoryError(f"the history does not keep the state before update {begin}")
        settings = history.settings
        table, kind = settings.table, settings.kind
        parameters = self._load(table, state)
        optimizer = _build(kind, table, parameters)
        counts = [_count(history, k, begin, end) for k in range(len(parameters))]
        _fill(optimizer, settings, parameters, state, counts)
        states = [state]
        with flushed_denormals(self._flushes):  # as in training, not as in what asks for states
            for number in range(begin, end):
                record = history.record(number)
                self._update(table, parameters, optimizer, record, settings.weighted)
                states.append(snapshot(optimizer, kind, parameters))
                self._check(history, states[-1], number + 1)
        return states

    def _load(self, table: ParameterTable, state: State) -> list[torch.Tensor]:
        named = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, values in table.views(state.theta).items():
                named[name].copy_(values)
        return [named[name] for name in table.names]

    def _update(
        self,
        table: ParameterTable,
        parameters: list[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        record: StepRecord,
        weighted: bool,
    ) -> None:
        device = parameters[0].device
        inputs, targets = self._samples.take(record.samples, device)
        weights = torch.as_tensor(record.weights, device=device) if weighted else None
        named = dict(zip(table.names, parameters, strict=True))
        found = self._gradients.batch(named, inputs, targets, weights)
        for (name, parameter), count, clip in zip(
            named.items(), record.counts, record.clip, strict=True
        ):
            gradient = found[name]
            parameter.grad = None
            if count != INACTIVE:
                parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
                parameter.grad.mul_(float(clip))
        for group, values in zip(optimizer.param_groups, record.hyper, strict=True):
            _set_hyper(group, [float(value) for value in values])
        optimizer.step()

    def _check(self, history: AnyHistory, state: State, number: int) -> None:
        kept = history.state(number)
        if kept is None:
            same = number == history.last or digest_of(state.theta) == history.record(number).digest
        else:
            same = torch.equal(kept.theta, state.theta.cpu())
        if same:
            return
        if self._tolerance == 0:
            raise HistoryError(
                f"replaying update {number - 1} does not give the recorded parameters (their "
                "digests differ); use the device, thread count, loss and data of the training "
                "run, or give a replay tolerance"
            )
        if kept is not None:
            self.deviation = max(
                self.deviation, float((kept.theta - state.theta.cpu()).abs().max())
            )
            if self.deviation > self._tolerance:
                raise HistoryError(
                    f"the replayed parameters before update {number} differ from the kept ones by "
                    f"{self.deviation:.2g}, more than the replay tolerance {self._tolerance:.2g}"
                )


def _build(
    kind: OptimizerKind, table: ParameterTable, parameters: list[torch.Tensor]
) -> torch.optim.Optimizer:
    groups = []
    for index, nesterov in enumerate(kind.nesterov):
        members = [p for p, g in zip(parameters, table.groups, strict=True) if g == index]
        # Nesterov's preconditions are checked at construction; real values are set every step.
        extra = {} if kind.adaptive else {"nesterov": nesterov, "momentum": 0.9}
        groups.append({"params": members, **extra})
    made: torch.optim.Optimizer = getattr(torch.optim, kind.name)(groups, lr=1.0)
    return made


def _set_hyper(group: dict[str, object], values: list[float]) -> None:
    lr, decay, momentum, dampening, beta2, eps = values
    group["lr"], group["weight_decay"] = lr, decay
    if "betas" in group:
        group["betas"], group["eps"] = (momentum, beta2), eps
    else:
        group["momentum"], group["dampening"] = momentum, dampening


def _count(history: AnyHistory, tensor: int, begin: int, end: int) -> int:
    """Updates of a tensor before ``begin`` (it may have been skipped in that very step)."""
    for number in range(begin, end):
        count = int(history.record(number).counts[tensor])
        if count != INACTIVE:
            return count
    return 0  # skipped in the whole segment: its buffers are not used


def _fill(
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    parameters: list[torch.Tensor],
    state: State,
    counts: list[int],
) -> None:
    """Give the optimizer the buffers of a kept state."""
    if state.momentum is None:
        raise HistoryError("the history keeps no momentum to replay from")
    table, kind = settings.table, settings.kind
    momentum = table.views(state.momentum)
    second = None if state.second_moment is None else table.views(state.second_moment)
    for name, parameter, count in zip(table.names, parameters, counts, strict=True):
        if count == 0:
            continue
        entry = {kind.momentum_key: momentum[name].to(parameter).clone()}
        if second is not None:
            entry[SECOND_MOMENT_KEY] = second[name].to(parameter).clone()
            entry["step"] = torch.tensor(float(count))
        optimizer.state[parameter] = entry


def snapshot(
    optimizer: torch.optim.Optimizer, kind: OptimizerKind, parameters: list[torch.Tensor]
) -> State:
    """Return parameters and optimizer state as they are now."""

    def flat(key: str) -> torch.Tensor:
        states = [optimizer.state.get(p, {}).get(key) for p in parameters]
        pairs = zip(parameters, states, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if s is None else s).detach().reshape(-1) for p, s in pairs]
        )

    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    return State(
        theta.clone(), flat(SECOND_MOMENT_KEY) if kind.adaptive else None, flat(kind.momentum_key)
    )

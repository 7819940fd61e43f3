"""Recording a training run: one row an update, taken just before ``optimizer.step()``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.utils.data import Dataset

from coarlib.errors import HistoryError, whole_number
from coarlib.history.checks import GradientCheck
from coarlib.history.clipping import watch_clipping
from coarlib.history.commit import Commit, optimizer_digest
from coarlib.history.gradients import SampleGradients
from coarlib.history.optimizers import (
    INACTIVE,
    SECOND_MOMENT_KEY,
    OptimizerKind,
    RowOf,
)
from coarlib.history.parameters import ParameterTable
from coarlib.history.preemption import BeforeTermination
from coarlib.history.reading import History, digest_of
from coarlib.history.resuming import counts_before, find_step, frozen_digest, select
from coarlib.history.rows import BufferedRows
from coarlib.history.settings import SETTINGS_FILE, STORAGE, Settings, create, read_settings
from coarlib.history.step_items import StepItem, encode_states, encode_steps, listed
from coarlib.history.training import (
    Samples,
    TrainingLoss,
    random_or_coupled,
    refuse_inexact,
)
from coarlib.store import RowWriter, Store

FLUSH_SECONDS = 30.0
"""A recorder flushes at least so often."""


def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: str | Path,
    *,
    samples: Samples | Sequence[Any] | Dataset[Any],
    loss: TrainingLoss,
    num_steps: int,
    max_batch: int,
    every: int = 1,
    window: tuple[int, int] | None = None,
    track: Iterable[str] = ("*",),
    storage: str | None = None,
    keep_momentum: bool = False,
    weighted: bool = False,
    check_every: int = 100,
    quiet: bool = False,
) -> HistoryRecorder:
    """Record the training history of a run; use as ``with record(…) as history:``.

    Inside, call ``history.batch(sample_numbers)`` before every ``optimizer.step()``; all else is
    noticed by itself. A history that is already there is continued: restore your own checkpoint,
    call this again, and the recorder finds by the digest of the parameters which step it is
    (``history.step``). Call ``history.flush()`` before you save a checkpoint, so that the history
    surely reaches it; besides, it flushes every half minute, on SIGTERM and at the end.

    Parameters
    ----------
    model, optimizer
        As trained; SGD, Adam or AdamW of ``torch.optim``.
    store : str or Path
        Directory of the history.
    samples : Samples, (inputs, targets) or Dataset
        The training set, whose numbers ``batch`` is given.
    loss : TrainingLoss
        The objective; the gradients of the first step and of every ``check_every``-th are compared
        with it.
    num_steps : int
        Updates of the whole run.
    max_batch : int
        The largest batch.
    every : int
        Keep every k-th state and replay the updates between when explaining.
    window : (start, stop), optional
        Record only these updates.
    track : iterable of str
        Name patterns of the tensors whose contributions will be wanted.
    storage : {"float32", "float64", "bfloat16"}, optional
        How states are stored; the model's own dtype by default.
    keep_momentum : bool
        Keep the momentum with every state.
    weighted : bool
        Allow ``batch(numbers, weights)`` with a weight a sample.
    check_every : int
        Steps between two comparisons of gradients; 0 for the first step only.
    quiet : bool
        Do not print the estimate of bytes.

    Returns
    -------
    HistoryRecorder

    Raises
    ------
    HistoryError
        Names what cannot be recorded exactly: the optimizer or its option, a BatchNorm in training
        mode, dropout, clipping by value, a gradient that is not that of ``loss``.
    ArgumentError
        If a count is no whole number.
    """
    kind = OptimizerKind.of(optimizer)
    table = ParameterTable.of(model, optimizer)
    samples = samples if isinstance(samples, Samples) else Samples(samples)
    start, stop = window or (0, num_steps)
    for name, value in (("num_steps", num_steps), ("every", every), ("max_batch", max_batch)):
        if whole_number(value, name) < 1:
            raise HistoryError(f"{name} must be at least 1, not {value}")
    if not 0 <= start < stop <= num_steps:
        raise HistoryError(f"the window {start} to {stop} does not lie in 0 to {num_steps}")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    settings = Settings(
        kind=kind,
        table=table,
        tracked=select(table, track),
        start=start,
        stop=stop,
        num_steps=num_steps,
        every=every,
        dtype=dtype,
        storage=storage or dtype,
        keep_momentum=keep_momentum or every > 1 or start > 0 or _began_before(optimizer, store),
        max_batch=max_batch,
        weighted=weighted,
        num_samples=len(samples),
        data_digest=samples.digest(),
        frozen_digest=frozen_digest(model, table),
    )
    if dtype not in {"float32", "float64"}:
        raise HistoryError(
            f"the model's parameters are {dtype}; record them in float32 or float64 (under "
            "autocast, which TrainingLoss takes, layers compute in bfloat16 all the same)"
        )
    if settings.storage not in STORAGE:
        raise HistoryError(f"storage must be one of {', '.join(STORAGE)}, not {settings.storage!r}")
    if every > 1 and settings.storage != dtype:
        raise HistoryError(f"replayed steps need states in the model's own dtype, {dtype}")
    check = GradientCheck(SampleGradients(model, loss), samples, check_every)
    recorder = HistoryRecorder(Path(store), settings, model, optimizer, check)
    if not quiet:
        print(settings.describe(), file=sys.stderr)
    return recorder


def _began_before(optimizer: torch.optim.Optimizer, store: str | Path) -> bool:
    """Whether momentum from before the recording has to be kept."""
    if (Path(store) / SETTINGS_FILE).exists():
        return read_settings(Path(store)).keep_momentum
    return bool(optimizer.state)


class HistoryRecorder:
    """What :func:`record` returns; ``step`` is the number of the next update."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        check: GradientCheck,
    ) -> None:
        self.path, self.settings = path, settings
        self._model, self._optimizer, self._check = model, optimizer, check
        named = dict(model.named_parameters())
        self._parameters: list[torch.Tensor] = [named[name] for name in settings.table.names]
        stored = set(settings.table.names if settings.every > 1 else settings.tracked)
        self._with_moment = [
            parameter
            for name, parameter in zip(settings.table.names, self._parameters, strict=True)
            if name in stored
        ]
        self._theta, self._second, self._momentum = RowOf(), RowOf(), RowOf()
        self._clip = [1.0] * len(self._parameters)
        self._risky = random_or_coupled(model)
        refuse_inexact(self._risky)
        new = create(path, settings)
        history = None if new else History(path)
        self.step = 0 if history is None else find_step(history, optimizer, self._parameters)
        self._counts = self._initial_counts(history)
        self._batch: tuple[list[int], NDArray[np.float64] | float] | None = None
        self._inside_update = False
        self._flushed = monotonic()
        self._terminate = BeforeTermination(self.flush)
        self._stack = ExitStack()

    def _initial_counts(self, history: History | None) -> list[int]:
        states = [self._optimizer.state.get(p, {}) for p in self._parameters]
        if self.settings.kind.adaptive:
            return [int(state.get("step", 0)) for state in states]
        recorded = None if history is None else counts_before(history, self.step)
        if recorded is not None:
            return recorded
        return [int(state.get("momentum_buffer") is not None) for state in states]

    def __enter__(self) -> HistoryRecorder:
        self._go_back()
        bfloat16 = self.settings.storage == "bfloat16"
        self._step_rows = BufferedRows(Store.open(self.path / "steps"), encode_steps)
        states = Store.open(self.path / "states")
        self._state_rows = BufferedRows(states, encode_states, bfloat16)
        handle = self._optimizer.register_step_pre_hook(self._before_step)
        after = self._optimizer.register_step_post_hook(self._after_step)
        self._stack.callback(handle.remove)
        self._stack.callback(after.remove)
        self._stack.enter_context(watch_clipping(self._parameters, self._clip))
        self._stack.enter_context(self._terminate)
        return self

    def _go_back(self) -> None:
        """Commit to where the model stands: what may be on disk beyond it does not count."""
        settings, beyond = self.settings, []
        states = Store.open(self.path / "states")
        if states.completed()[-1] and states.array("step")[-1] > self.step:
            beyond.append((states, settings.num_states - 1))
        if settings.has_ends:
            ends = Store.open(self.path / "ends")
            if ends.completed()[1] and ends.array("step")[1] > self.step:
                beyond.append((ends, 1))
            if self.step == 0:
                self._write_end(0)
        for store, row in beyond:
            with RowWriter(store) as writer:
                writer.withdraw(np.array([row]))
        self._commit()

    def _write_end(self, row: int) -> None:
        """Write θ as it is now as the run's beginning (row 0) or end (row 1)."""
        store = Store.open(self.path / "ends")
        theta = torch.cat([p.detach().cpu().reshape(-1) for p in self._parameters])
        bits = theta.view(torch.int16) if theta.dtype == torch.bfloat16 else theta
        with RowWriter(store) as writer:
            content = {"step": np.array([self.step]), "theta": bits.numpy()[None]}
            writer.write(np.array([row]), content)

    def _commit(self) -> None:
        found = optimizer_digest(self._optimizer, self.settings.kind, self._parameters)
        Commit(self.step, self._digest(), found).write(self.path)
        self._flushed = monotonic()

    def flush(self) -> None:
        """Put all updates so far on disk, as one; call it before you save a checkpoint.

        Raises
        ------
        HistoryError
            If it is called within ``optimizer.step()``.
        """
        if self._inside_update:
            raise HistoryError("history.flush() belongs between updates, not into one")
        self._terminate.begin()
        try:
            self._state_rows.drain()
            self._step_rows.drain()
            self._commit()
        finally:
            self._terminate.end()

    def batch(self, numbers: ArrayLike | torch.Tensor, weights: ArrayLike | None = None) -> None:
        """Declare the samples of the next update.

        Parameters
        ----------
        numbers : int [B]
            Sample numbers.
        weights : float [B], optional
            Weight of each sample's loss in the objective; by the reduction (1/B or 1) otherwise.

        Raises
        ------
        HistoryError
        """
        samples, settings = listed(numbers), self.settings
        if not 0 < len(samples) <= settings.max_batch:
            raise HistoryError(
                f"a batch of {len(samples)} samples does not fit max_batch={settings.max_batch}"
            )
        for number in (min(samples), max(samples)):
            if not 0 <= number < settings.num_samples:
                raise HistoryError(
                    f"sample {number} of the batch is not one of {settings.num_samples}"
                )
        if weights is not None and not settings.weighted:
            raise HistoryError("weights of samples need record(…, weighted=True)")
        default = self._check.gradients.loss.weight(len(samples))
        self._batch = samples, default if weights is None else np.array(weights, float)

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        settings = self.settings
        self._terminate.begin()
        if any(value is not None for value in (*args[1:], kwargs.get("closure"))):
            raise HistoryError("optimizer.step(closure) cannot be recorded; call backward before")
        if self.step >= settings.num_steps:
            raise HistoryError(
                f"the history was declared for {settings.num_steps} updates; this is one more"
            )
        refuse_inexact(self._risky)
        active = [p.grad is not None for p in self._parameters]
        if settings.start <= self.step < settings.stop:
            self._record_step(active)
        elif self.step == settings.stop:
            self._write_state(settings.num_states - 1)
        self._counts = [c + a for c, a in zip(self._counts, active, strict=True)]
        self._inside_update = True

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.step += 1
        self._batch = None
        self._clip[:] = [1.0] * len(self._clip)
        self._inside_update = False
        if monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        self._terminate.end()

    def _record_step(self, active: list[bool]) -> None:
        settings, row = self.settings, self.step - self.settings.start
        if self._batch is None:
            raise HistoryError(
                f"update {self.step} has no batch; call history.batch(numbers) before it"
            )
        samples, weights = self._batch
        if self._check.due(row):
            self._check_gradients(row, samples, weights)
        state = settings.state_row(self.step)
        digest = None if state is None else self._write_state(state)
        counts = [c if a else INACTIVE for c, a in zip(self._counts, active, strict=True)]
        hyper = settings.kind.hyperparameters(self._optimizer)
        digest = self._digest() if digest is None else digest
        item = StepItem(samples, weights, hyper, counts, list(self._clip), digest)
        self._step_rows.append(row, item)

    def _check_gradients(
        self, row: int, samples: list[int], weights: NDArray[np.float64] | float
    ) -> None:
        settings, numbers = self.settings, np.array(samples, np.int64)
        given = numbers * 0 + np.asarray(weights) if settings.weighted else None
        self._check.at(row, settings.table, self._parameters, numbers, given, clip=self._clip)

    def _digest(self) -> int:
        return digest_of(torch.cat([p.detach().reshape(-1) for p in self._parameters]))

    def _write_state(self, row: int) -> int | None:
        """Write the state as it is now; returns θ's digest if its bytes are those stored."""
        slot = self._state_rows.place
        self._theta.write(self._parameters, slot["theta"])
        optimizer = self._optimizer
        if "second_moment" in slot:
            second = (self._with_moment, SECOND_MOMENT_KEY, slot["second_moment"])
            self._second.write_state(optimizer, *second)
        if "momentum" in slot:
            key = self.settings.kind.momentum_key
            self._momentum.write_state(optimizer, self._parameters, key, slot["momentum"])
        exact = slot["theta"].dtype == self._parameters[0].dtype
        digest = digest_of(self._state_rows.place_arrays["theta"]) if exact else None
        self._state_rows.append(row, self.step)
        return digest

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        settings = self.settings
        try:
            if not self._inside_update:
                last = settings.state_row(settings.stop)
                if last is not None and settings.start <= self.step <= settings.stop:
                    self._write_state(last)
                ended = self.step == settings.num_steps or not settings.is_window
                if settings.has_ends and ended:
                    self._write_end(1)
                self.flush()
        finally:
            try:
                self._step_rows.close()
            finally:
                self._state_rows.close()

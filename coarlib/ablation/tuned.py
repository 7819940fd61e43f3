"""A task that settles how its rows are computed: precision, batch, compiling and launching."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation.compiling import FASTER, compiled_or_plain, patience
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.measuring import MeasuringTask
from coarlib.ablation.precision import PRECISIONS, choose_precision, is_pure, native
from coarlib.ablation.tuning import announced_batch, batch_by_probe, fastest
from coarlib.ablation.ways import Ablation


class TunedTask(MeasuringTask):
    """Measures in the way that suits device and model; options settle it by hand."""

    tolerance = 1e-3

    way: type[Ablation]
    """What ablating means."""

    compiled: bool | None
    """Whether the model is compiled; None: once rows have taken a while."""

    _size_is_free: bool
    _precision_is_free: bool
    _whole: nn.Module  # the network in the precision it came in, and what ablates it
    _whole_ablation: Ablation
    _held_in: torch.dtype | None = None
    _open = False  # prepared, and not settled how rows are computed

    @abstractmethod
    def _ablation_of(self, components: ComponentSet) -> Ablation:
        """Return what ablates the components of the network."""

    def _settle_later(self, check: Callable[[], None]) -> None:
        """Check the network as it came, and settle what was asked for; the rest waits."""
        self._fast, self._spent, self._held_in, asked_for = None, 0.0, None, self.autocast
        self._compute_in("none" if is_pure(asked_for) else asked_for)
        check()
        self._open = True
        if not self._precision_is_free:
            self._settle(asked_for)

    def _settle(self, precision: str | None = None) -> None:
        """Settle how rows are computed, once: by probes, unless the precision is given.

        It waits until somebody asks, so that a store whose precision is settled is not probed.
        """
        if not self._open:
            return
        self._open, device, start = False, self._device, self.batch_size
        probed = self._size_is_free and device.type != "cpu"
        if precision is None:
            names = [x for x in native(device) if self.way.on_weights or not is_pure(x)]
            if probed and names:
                self.batch_size = self._size_in(names[0])
            precision = choose_precision(device, names, self._outputs_in, self._seconds_in)
            if precision not in names[:1]:  # whose batch was found
                self.batch_size = start
        self._compute_in(precision)
        if probed:
            self.batch_size = announced_batch(
                device, self._run_batch, len(self._examples), self.batch_size
            )
        if self.compiled:
            self._compile()

    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
        """Evaluate each mask on all examples: :meth:`MeasuringTask.rows`.

        Where ``compiled`` was left open, the model is compiled once rows have taken a while.
        """
        self._settle()
        if self.compiled is None and self._spent > patience(self._device):
            self.compiled = True
            self._compile(FASTER)
        return super().rows(indices, masks)

    def _compute_in(self, name: str) -> None:
        """Let rows be computed in a precision: by the model itself, or by a copy held in it."""
        half = PRECISIONS[name] if is_pure(name) else None
        if half != self._held_in:
            self._network, self._ablation = self._whole, self._whole_ablation
            if half is not None:
                self._network = deepcopy(self._whole).to(half)
                self._ablation = self._ablation_of(self._whole_ablation.components)
        self.autocast, self._held_in = name, half
        self._replays = self._new_replays()

    def _outputs_in(self, precision: str, count: int) -> torch.Tensor:
        """Return outputs [8, …] of a few rows on the first examples, computed in a precision."""
        self._compute_in(precision)
        return self._few_rows(count)

    def _size_in(self, precision: str) -> int:
        """Return the batch that keeps the device at work in a precision; it has to, to compare."""
        try:
            self._compute_in(precision)
            return batch_by_probe(self._run_batch, len(self._examples), self.batch_size)[0]
        except (RuntimeError, TypeError):  # a model that does not run in it
            return self.batch_size

    def _seconds_in(self, precision: str) -> float:
        """Time an example in a precision, in a batch that fits the memory."""
        self._compute_in(precision)
        size = self.batch_size
        while True:
            try:
                return fastest(partial(self._run_batch, size)) / size
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2

    def _coarse(self, dtypes: Collection[torch.dtype] = ()) -> float:
        """Return the tolerance of a precision: halves round hundreds of times more coarsely."""
        half = PRECISIONS[self.autocast] or {torch.half, torch.bfloat16}.intersection(dtypes)
        return 100 * self.tolerance if half else self.tolerance

    def _compile(self, faster: float = 0.0) -> None:
        """Compile the network for batches of one size, if that works and is so much faster."""
        count = len(self._examples)
        size = -(-count // -(-count // self.batch_size))
        _, batch = next(self.batches(size))

        def run(some: nn.Module) -> torch.Tensor:
            with torch.inference_mode(), self.precision():
                return self.predict(some, self._held(batch.inputs)).float()

        found = compiled_or_plain(self._network, run, self._coarse(), self._device, faster)
        if found is not self._network:
            self._fast, self.batch_size = found, size
            self._replays = self._new_replays()

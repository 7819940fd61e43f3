"""Measuring an ablated model: its outputs on all examples, mask by mask."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation.examples import Examples
from coarlib.ablation.launching import Replays, Step
from coarlib.ablation.precision import PRECISIONS, computing_in, is_pure, probe_masks
from coarlib.ablation.probe import checked_output, logits_of
from coarlib.ablation.ways import Ablation
from coarlib.errors import ComponentError
from coarlib.outputs import Output, margin, trusted
from coarlib.task import Task


class MeasuringTask(Task):
    """Runs a network on examples under masks; what these are, a subclass settles before."""

    outputs: ClassVar[Mapping[str, Output]] = {"test_margins": margin}
    """Array of the store -> what it records."""

    batch_size: int
    """Examples in one forward pass."""

    autocast: str = "none"
    """The precision, a name in :data:`coarlib.ablation.precision.PRECISIONS`."""

    _network: nn.Module
    _examples: Examples
    _device = torch.device("cpu")
    _ablation: Ablation | None = None
    _fast: nn.Module | None = None  # the network compiled for batches of batch_size
    _replays: Replays | None = None
    _spent = 0.0  # seconds of rows

    def transform(self, batch: Examples) -> Examples:
        """Turn a batch of stored examples into what model and outputs take (on the device)."""
        return batch

    def predict(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the logits of a batch; of what Hugging Face models return they are taken."""
        if keywords := self._examples.keywords:
            return logits_of(network(**dict(zip(keywords, inputs, strict=True))))
        return logits_of(network(*inputs))

    @property
    def num_examples(self) -> int:
        """Number of targets T, known after :meth:`prepare`."""
        return len(self._examples)

    @property
    def device(self) -> torch.device:
        """Return the device given to :meth:`prepare`."""
        return self._device

    @property
    def ablation(self) -> Ablation:
        """Return what ablates the components, known after :meth:`prepare`."""
        if self._ablation is None:
            raise ComponentError("call prepare(device) first")
        return self._ablation

    def precision(self) -> torch.autocast:
        """Return the context in which the network of the rows computes."""
        return computing_in(self.autocast, self._device)

    def batches(self, size: int | None = None) -> Iterator[tuple[slice, Examples]]:
        """Iterate over the examples as the model takes them, with their positions."""
        for where, stored in self._examples.batches(size or self.batch_size):
            yield where, self._taken(stored)

    def _taken(self, stored: Examples) -> Examples:
        """Return stored examples as the model takes them."""
        return self.transform(stored if self._examples.resident else stored.to(self._device))

    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
        """Evaluate each mask on all examples.

        Parameters
        ----------
        indices : int64 [B]
            What ways of ablating that draw, draw from.
        masks : bool [B, N]
            True = kept.

        Returns
        -------
        dict of array name to float32 [B, T]

        Raises
        ------
        ComponentError
            If the masks do not fit the components.
        """
        ablation = self._ablation
        if ablation is None:
            raise ComponentError("call prepare(device) before rows(…)")
        ablation.components.check_masks(masks)
        began = time.perf_counter()
        kept = torch.from_numpy(masks.copy(order="C"))
        shape = len(masks), len(self._examples)
        found = {key: torch.empty(shape, device=self._device) for key in self.outputs}
        size = min(self.batch_size, len(self._examples))
        with torch.inference_mode(), self.precision(), ablation:
            while True:
                try:
                    self._evaluate(ablation, indices, kept, size, found)
                    rows = {key: values.cpu() for key, values in found.items()}
                    self._spent += time.perf_counter() - began
                    return rows
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    size = self.batch_size = (size + 1) // 2
                    self._fast, self._replays = None, self._new_replays()

    def _new_replays(self) -> Replays | None:
        """Return a place for recordings, where there are graphs and examples stay in place."""
        fixed = self._examples.resident and self._device.type == "cuda"
        return Replays() if fixed and self.ablation.on_weights else None

    def _evaluate(
        self,
        ablation: Ablation,
        indices: NDArray[np.int64],
        masks: torch.Tensor,
        size: int,
        found: dict[str, torch.Tensor],
    ) -> None:
        """Fill the outputs [B, T] of rows."""
        states = ablation.spread(masks)
        # Batches outside and masks inside: data that streams in is moved once for all masks.
        batches = self._examples.batches if self._fast is None else self._examples.whole_batches
        for where, stored in batches(size):
            batch = self._taken(stored)
            batch = replace(batch, inputs=self._held(batch.inputs))
            for row, state in enumerate(states):
                run: Step = partial(self._step, ablation, int(indices[row]), where, batch)
                with trusted() if row else nullcontext():
                    if row and self._replays:
                        run = self._replays.step(where.start, run, state)
                    values = run(state)
                for key, whole in found.items():
                    whole[row, where] = values[key]

    def _step(
        self,
        ablation: Ablation,
        row: int,
        where: slice,
        batch: Examples,
        state: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the outputs [B] of a batch with a mask applied."""
        ablation.set(state)
        return self._measured(ablation, row, where, batch)

    def _measured(
        self, ablation: Ablation, row: int, where: slice, batch: Examples
    ) -> dict[str, torch.Tensor]:
        """Return the outputs [B] of a batch as the model now is, float32 on the device."""
        partners = ablation.partners(row, where)
        run = batch if partners is None else self._joined(where, partners)
        network = self._network if self._fast is None else self._fast
        logits = self.predict(network, self._held(run.inputs))
        return {
            key: checked_output(key, output, logits, run)[: len(batch)].float()
            for key, output in self.outputs.items()
        }

    def _held(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return inputs as a model that is held in half precision takes them."""
        if not is_pure(self.autocast):
            return inputs
        half = PRECISIONS[self.autocast]
        return tuple(x.to(half) if x.is_floating_point() else x for x in inputs)

    def _joined(self, where: slice, partners: NDArray[np.int64]) -> Examples:
        """Return the examples of a batch followed by their partners."""
        batch = np.arange(where.start, where.stop)
        return self._taken(self._examples.take(torch.from_numpy(np.append(batch, partners))))

    def _run_batch(self, size: int) -> None:
        """Run one batch, and wait until the device has ended."""
        _, batch = next(self.batches(size))
        with torch.inference_mode(), self.precision():
            for values in self._measured(self.ablation, 0, slice(0, len(batch)), batch).values():
                values.sum().item()

    def _few_rows(self, count: int) -> torch.Tensor:
        """Return outputs [8, …] of a few rows on the first examples, on the CPU."""
        where = slice(0, min(count, len(self._examples)))
        batch = self._taken(self._examples.take(where).to(self._device))
        found = []
        with torch.inference_mode(), self.precision(), self.ablation as it:
            for row, mask in enumerate(probe_masks(len(it.components))):
                it.apply(mask)
                found.append(torch.cat([*self._measured(it, row, where, batch).values()]).cpu())
        return torch.stack(found)

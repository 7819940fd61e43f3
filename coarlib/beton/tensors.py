"""Batches as torch tensors on a device, the next ones prepared while one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from coarlib.beton.arrays import empty_rows
from coarlib.errors import BetonError

if TYPE_CHECKING:
    import torch

    from coarlib.beton.fields import Field

AHEAD = 2  # batches prepared in advance: one being copied to the device, one being gathered


class Rows(Protocol):
    """What is asked of a file: its fields, and rows copied out or into given arrays."""

    fields: dict[str, Field]

    def rows(self, indices: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return copies of rows."""

    def fill(self, out: Mapping[str, np.ndarray], indices: np.ndarray) -> None:
        """Copy rows into arrays."""


def tensor_batches(
    file: Rows, names: Sequence[str], batches: Sequence[np.ndarray], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the rows of each batch as tensors on ``device``.

    A thread gathers the rows. For a CUDA device it gathers into pinned memory and copies on a
    stream of its own, so that gathering, copying and computing overlap.

    Parameters
    ----------
    file : Rows
    names : sequence of str
        Fields.
    batches : sequence of int64 [B]
        The rows of each batch.
    device : torch.device

    Raises
    ------
    BetonError
        If torch has no such dtype as a field's.
    """
    for name in names:
        check_torch_dtype(name, file.fields[name].dtype)
    longest = max(map(len, batches), default=0)
    copier: _Pinned | _Plain = _Plain(file, names, device)
    if device.type == "cuda":
        copier = _Pinned(file, names, longest, device)
    return _prepared(copier, batches)


def _prepared(
    copier: _Pinned | _Plain, batches: Sequence[np.ndarray]
) -> Iterator[dict[str, torch.Tensor]]:
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="beton") as worker:
        for number, rows in enumerate(batches):
            pending.append(worker.submit(copier.load, number, rows))
            if len(pending) > AHEAD:
                yield copier.hand_over(pending.popleft().result())
        while pending:
            yield copier.hand_over(pending.popleft().result())


def check_torch_dtype(name: str, dtype: np.dtype) -> None:
    """Refuse a field whose dtype torch does not have (BetonError)."""
    import torch

    try:
        torch.from_numpy(np.empty(1, dtype))
    except (TypeError, ValueError) as error:
        raise BetonError(
            f"torch has no dtype for field '{name}' ({dtype}); leave it out of names"
        ) from error


class _Plain:
    """Batches in ordinary memory, moved to the device where that is not the CPU."""

    def __init__(self, file: Rows, names: Sequence[str], device: torch.device) -> None:
        self.file, self.names, self.device = file, names, device

    def load(self, number: int, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Gather a batch."""
        import torch

        batch = self.file.rows(rows, self.names)
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}

    def hand_over(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what ``load`` made, ready for use."""
        return batch


class _Pinned:
    """Batches copied to a CUDA device from a ring of pinned buffers, on a stream of their own."""

    def __init__(
        self, file: Rows, names: Sequence[str], longest: int, device: torch.device
    ) -> None:
        import torch

        self.file, self.names, self.device = file, names, device
        self.stream = torch.cuda.Stream(device)
        self.buffers = [self._pinned(longest) for _ in range(AHEAD)]
        self.copied: list[torch.cuda.Event | None] = [None] * AHEAD

    def _pinned(self, longest: int) -> dict[str, torch.Tensor]:
        import torch

        empty = {name: empty_rows(self.file.fields[name], longest) for name in self.names}
        return {name: torch.from_numpy(array).pin_memory() for name, array in empty.items()}

    def load(
        self, number: int, rows: np.ndarray
    ) -> tuple[dict[str, torch.Tensor], torch.cuda.Event]:
        """Gather a batch into pinned memory and begin its copy to the device."""
        import torch

        slot = number % AHEAD
        before = self.copied[slot]
        if before is not None:
            before.synchronize()  # the buffer's last batch has left it
        host = {name: buffer[: len(rows)] for name, buffer in self.buffers[slot].items()}
        self.file.fill({name: tensor.numpy() for name, tensor in host.items()}, rows)
        with torch.cuda.stream(self.stream):
            batch = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in host.items()
            }
            event = torch.cuda.Event()
            event.record(self.stream)
        self.copied[slot] = event
        return batch, event

    def hand_over(
        self, loaded: tuple[Mapping[str, torch.Tensor], torch.cuda.Event]
    ) -> dict[str, torch.Tensor]:
        """Let the caller's stream wait for the copy, and keep its memory until that is done."""
        import torch

        batch, event = loaded
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in batch.values():
            tensor.record_stream(current)
        return dict(batch)

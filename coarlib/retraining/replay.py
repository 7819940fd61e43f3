"""Work on tensors of fixed shapes, recorded once on an accelerator and then repeated.

Small models leave an accelerator waiting for the host, which launches hundreds of short kernels a
step. Recorded as a CUDA graph, a step is one launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["WARM_CALLS", "Recorder", "Replayed"]

Tensors = Sequence[torch.Tensor | None]
Work = Callable[[], Tensors]
WARM_CALLS = 2  # before a recording, so that libraries have chosen their kernels


class Recorder(Protocol):
    """What records work; see :class:`coarlib.cuda_graphs.CudaGraphs`."""

    def watched(self, work: Work) -> tuple[Tensors, bool]:
        """Do it; whether it waits for the device, which no recording can, is told too."""

    def recorded(self, work: Work) -> tuple[Tensors, Callable[[], object]]:
        """Record it without doing it: where its results will be, and what does it."""


class Replayed:
    """A function of tensors, recorded for each set of shapes that it is often called with.

    Parameters
    ----------
    function : callable (*tensors) -> tensors or None
    recorder : Recorder, optional
        None calls the function every time.
    """

    def __init__(self, function: Callable[..., Tensors], recorder: Recorder | None) -> None:
        self._function, self._recorder = function, recorder
        self._calls: Counter[Any] = Counter()
        self._known: dict[Any, tuple[list[torch.Tensor], Tensors, Callable[[], object]]] = {}

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        """Return what the function returns; valid until the next call."""
        shapes = tuple(part.shape for part in tensors)
        self._calls[shapes] += 1
        if shapes not in self._known and self._recorder is not None:
            if self._calls[shapes] == WARM_CALLS:
                found, waits = self._recorder.watched(lambda: self._function(*tensors))
                self._recorder = None if waits else self._recorder
                return found
            if self._calls[shapes] > WARM_CALLS:
                self._record(self._recorder, shapes, tensors)
        if shapes not in self._known:
            return self._function(*tensors)
        places, results, repeat = self._known[shapes]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        repeat()
        return results

    def _record(self, recorder: Recorder, shapes: Any, tensors: tuple[torch.Tensor, ...]) -> None:
        places = [part.clone() for part in tensors]
        try:
            recorded = recorder.recorded(lambda: self._function(*places))
        except RuntimeError:  # what it calls cannot be recorded, or memory is full
            self._recorder = None
        else:
            self._known[shapes] = places, *recorded

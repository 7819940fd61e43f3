"""Recording a row's work once, so that launching it again costs one call.

A small model on an accelerator spends its time launching: hundreds of kernels of a few
microseconds. Weights are masked in place and examples stay where they are, so the work of a row on
a batch is the same launches whatever the mask: a CUDA graph replays them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from coarlib.ablation.tuning import fastest
from coarlib.cuda_graphs import CudaGraphs

Values = dict[str, torch.Tensor]
Record = Callable[[Callable[[], Values]], tuple[Values, Callable[[], object]]]
Step = Callable[[torch.Tensor], Values]
"""(state, what :meth:`coarlib.ablation.ways.base.Ablation.spread` made of a mask) -> outputs."""

LONGEST = 0.02  # seconds; what takes longer is not bound by launching
FASTER = 0.9
MOST = 16  # recordings


class Replays:
    """Steps that were recorded, by the batch they run.

    Parameters
    ----------
    record : callable (run) -> values, replay
        Records what a function launches: what it returned, and how to launch it again. By
        default a CUDA graph.
    wait : callable
        Returns when the device has ended.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        record: Record | None = None,
        wait: Callable[[], None] = torch.cuda.synchronize,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._record = record or _graphs()
        self._wait, self._clock = wait, clock
        self._steps: dict[int, Step | None] = {}
        self._read: list[Step] = []

    def step(self, batch: int, run: Step, state: torch.Tensor) -> Step:
        """Return what does as ``run`` for a batch, the fastest known way.

        Parameters
        ----------
        batch : int
            Which: its first example.
        run : callable
            Sets a state and measures; it has run before with other states.
        state : bool [C]
            Any.
        """
        if batch not in self._steps:
            self._steps[batch] = self._recorded(run, state) if len(self._steps) < MOST else None
        return self._steps[batch] or run

    def _recorded(self, run: Step, state: torch.Tensor) -> Step | None:
        """Record a step; None if it cannot be, or if that is hardly faster."""
        slow = self._seconds(lambda: run(state))
        if slow > LONGEST:
            return None
        held = state.clone()
        try:
            values, again = self._record(lambda: run(held))
        except RuntimeError:  # something waits for the device, or its memory is full
            return None
        self._read.append(run)  # a recording reads the memory of its batch

        def replay(state: torch.Tensor) -> Values:
            held.copy_(state)
            again()
            return values

        return replay if self._seconds(lambda: replay(state)) < FASTER * slow else None

    def _seconds(self, call: Callable[[], object]) -> float:
        def ended() -> None:
            call()
            self._wait()

        self._wait()
        return fastest(ended, self._clock)


def _graphs() -> Record:
    """Record CUDA graphs that share their memory: one runs at a time, and is read before the next.

    What they return is overwritten by the next replay of any of them.
    """
    graphs = CudaGraphs(torch.cuda.graph_pool_handle())

    def record(run: Callable[[], Values]) -> tuple[Values, Callable[[], object]]:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            if graphs.watched(run)[1]:
                raise RuntimeError("it waits for the device")
            recorded = graphs.recorded(run)
        here.wait_stream(aside)
        return recorded

    return record

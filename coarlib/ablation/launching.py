"""Recording a row's work once, so that launching it again costs one call.

A small model on an accelerator spends its time launching: hundreds of kernels of a few
microseconds. Weights are masked in place and examples stay where they are, so the work of a row on
a batch is the same launches whatever the mask: a CUDA graph replays them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Values = dict[str, torch.Tensor]
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
        record: Callable[[Callable[[], Values]], tuple[Values, Callable[[], None]]] | None = None,
        wait: Callable[[], None] = torch.cuda.synchronize,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._record = record or _Graphs()
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
        times = []
        for _ in range(3):
            self._wait()
            began = self._clock()
            call()
            self._wait()
            times.append(self._clock() - began)
        return min(times)


class _Graphs:
    """Records CUDA graphs that share their memory: one runs at a time, and is read before the next.

    What they return is overwritten by the next replay of any of them.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Values]) -> tuple[Values, Callable[[], None]]:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _without_waiting():  # and libraries get working memory
            run()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            values = run()
        return values, graph.replay


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Make waiting for the device an error: a recording that fails leaves torch in disorder."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

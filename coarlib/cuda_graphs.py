"""Recording what is launched on a CUDA device, so that launching it again costs one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["CudaGraphs"]

Result = TypeVar("Result")


class CudaGraphs:
    """Records CUDA graphs on the current stream, which must not be the default one.

    Parameters
    ----------
    pool : optional
        The memory of the graphs (``torch.cuda.graph_pool_handle()``); with one for several of them,
        what one returned is overwritten when another is launched.
    """

    def __init__(self, pool: Any = None) -> None:
        self._pool = pool

    def watched(self, work: Callable[[], Result]) -> tuple[Result, bool]:
        """Do it, and see whether it waits: a recording that fails leaves torch in disorder."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                found = work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return found, any("synchronizing CUDA" in str(one.message) for one in told)

    def recorded(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], object]]:
        """Record what it launches: where its results will be, and what launches it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            results = work()
        return results, graph.replay

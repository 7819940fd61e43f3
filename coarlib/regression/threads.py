"""How many threads compiled loops use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads() -> Iterator[None]:
    """Let compiled loops use as many threads as torch does, and leave torch's number as it was.

    Both draw on one OpenMP, whose setting numba changes for the whole process: otherwise a fit
    undoes ``OMP_NUM_THREADS`` and ``--threads``, and what torch computes afterwards waits for
    threads that other workers keep busy (ten times the processor time, measured).
    """
    import numba

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)

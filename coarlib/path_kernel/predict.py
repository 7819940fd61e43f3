"""Reconstructing predictions only: no contribution of single samples, forward mode throughout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from coarlib.devices import flushed_denormals
from coarlib.history.gradients import differentiable_attention
from coarlib.history.inputs import Inputs
from coarlib.history.queries import Queries, Query
from coarlib.history.walk import Walk
from coarlib.path_kernel.adjoint import CHECKS
from coarlib.path_kernel.decomposition import Decomposition
from coarlib.path_kernel.explain import DEFAULT_MEMORY, RecordedRun
from coarlib.path_kernel.quadrature import Quadrature, checked_tolerance
from coarlib.path_kernel.segments import Segments, over_updates
from coarlib.progress import Progress

EMPTY = ("regulariser", "prior_momentum", "outside", "rounding", *CHECKS)
LIVE_COPIES = 8
"""Values of an update's parameters, and of a point's activations, that live at a time, about."""

MAX_UPDATES = 64
"""More in one pass gain nothing."""


def predict(
    run: RecordedRun,
    inputs: Inputs,
    targets: torch.Tensor,
    *,
    output: str | Query = "all",
    tolerance: float | None = None,
    decay_apart: bool = False,
    memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
) -> Decomposition:
    """Reconstruct outputs as f_0 + Σ_s ⟨Φ_s, θ_(s+1) - θ_s⟩.

    One forward-mode derivative a node serves all outputs, so this is far cheaper than
    :func:`coarlib.path_kernel.explain`. ``data`` here holds everything that moved the parameters.

    Parameters
    ----------
    run, inputs, targets, output, tolerance, quiet
        As in :func:`coarlib.path_kernel.explain`.
    decay_apart : bool
        Give decoupled weight decay as ``weight_decay``, by the midpoint rule; one more derivative
        an update.
    memory : int
        Bytes that one pass may take, about; sets how many updates are computed together.

    Returns
    -------
    Decomposition
        Totals only.
    """
    walk = run.walk
    run.require_finite()
    queries = Queries(run.model, run.put(inputs), run.put(targets), output)
    outputs = queries.count_outputs(walk.theta(walk.history.first))
    allowed = checked_tolerance(tolerance, walk.dtype)
    points = torch.arange(len(queries), device=walk.device)
    with differentiable_attention(), flushed_denormals():
        size = _Size.plan(memory, queries, walk)
        sums = _Sums(walk, queries, Quadrature(allowed), points, decay_apart)
        with Progress(len(walk.numbers), "predicting", "step", quiet) as progress:
            for begin in range(walk.history.first, walk.history.last, size.updates):
                end = min(begin + size.updates, walk.history.last)
                sums.updates(begin, end, size.at_once)
                progress.advance(end - begin)
    arrays = {k: v.double().cpu().numpy() for k, v in sums.arrays().items()}
    about = {
        "tolerance": allowed,
        "num_outputs": outputs,
        "first": walk.history.first,
        "last": walk.history.last,
        "initial_is": f"the model before update {walk.history.first}",
        "final_is": f"the model before update {walk.history.last}",
    }
    found = Decomposition({k: np.asarray(v) for k, v in arrays.items()}, about)
    found.warn()
    return found


@dataclass(frozen=True)
class _Size:
    """How many updates, and points with parameters of their own, are computed in one pass."""

    updates: int
    at_once: int

    @classmethod
    def plan(cls, memory: int, queries: Queries, walk: Walk) -> _Size:
        theta = walk.theta(walk.history.first)
        parameters = sum(values.numel() * values.element_size() for values in theta.values())
        point = LIVE_COPIES * queries.bytes_of_one(theta)
        update = LIVE_COPIES * parameters + len(queries) * point
        shared = max(1, min(MAX_UPDATES, memory // update))
        return cls(shared, max(1, memory // (LIVE_COPIES * parameters + point)))


class _Sums:
    """The sums, as they grow from update to update, float64 [n, K]."""

    def __init__(
        self,
        walk: Walk,
        queries: Queries,
        quadrature: Quadrature,
        points: torch.Tensor,
        decay_apart: bool,
    ) -> None:
        self._walk, self._queries, self._quadrature = walk, queries, quadrature
        self._points, self._decay_apart = points, decay_apart
        self._initial = self._final = queries.values(walk.theta(walk.history.first), points)
        zero = torch.zeros_like(self._initial).double()
        self._zero = zero
        self._moved, self._decayed, self._residual, self._largest = (zero.clone() for _ in range(4))

    def updates(self, begin: int, end: int, at_once: int) -> None:
        """Add the updates ``begin … end - 1``."""
        numbers = range(begin, end)
        path = torch.stack([self._walk.flat(number) for number in range(begin, end + 1)])
        table = self._walk.history.settings.table
        segments = Segments.of_path(self._queries, table, path, at_once)
        later = over_updates(
            lambda at: self._queries.values(at, self._points), table.views(path[1:])
        )
        earlier = torch.cat([self._final[None], later[:-1]])
        total = segments.slopes(0.5, self._points)
        wrong = (later - earlier - total).abs().amax(-1) > self._quadrature.allowed(earlier, later)
        if wrong.any():
            which, column = wrong.nonzero(as_tuple=True)
            ends = (values[wrong] for values in (earlier, later))
            of_points = self._points[column]
            total[wrong] = self._quadrature.integral(segments, which, of_points, *ends)
        off = (later - earlier - total).double()
        decay = self._decay(numbers, path).double()
        self._moved += total.double().sum(0) - decay
        self._decayed += decay
        self._residual += off.sum(0)
        self._largest = torch.maximum(self._largest, off.abs().amax(0))
        self._final = later[-1]

    def _decay(self, numbers: range, path: torch.Tensor) -> torch.Tensor:
        """What decoupled weight decay does in some updates, by the midpoint rule, ``[n, K]``."""
        if not self._decay_apart:
            return self._zero
        table = self._walk.history.settings.table
        middle = table.views(torch.lerp(path[:-1], path[1:], 0.5))
        shrinks = [self._walk.shrinks(number) for number in numbers]
        tangents = {
            name: -torch.stack([values[k] * s.get(name, 0.0) for k, s in enumerate(shrinks)])
            for name, values in table.views(path[:-1]).items()
        }
        return over_updates(
            lambda at, along: self._queries.slopes(at, along, self._points), middle, tangents
        ).sum(0)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return what a :class:`Decomposition` holds."""
        none = dict.fromkeys(EMPTY, self._zero)
        return {
            **none,
            "initial": self._initial,
            "final": self._final,
            "data": self._moved,
            "weight_decay": self._decayed,
            "quadrature_residual": self._residual,
            "largest_step_residual": self._largest,
        }

"""Several updates at once where the model's layers are linear: no parameters of a node are formed.

``(θ + αΔ) a`` is ``θ a + α (Δ a)``: rows with an α of their own share two matrix products an
update. Gradients stay factors until the nodes of a (update, point) pair are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from coarlib.devices import float32_products
from coarlib.history.gradients import differentiable_attention
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.run import RecordedRun
from coarlib.history.stacked import Stack, StackedModel

LIVE_COPIES = 4
"""Values of a pass that live at a time, over those that its forward pass writes, about."""
SAME = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest relative difference of gradients that may be rounding."""
ROUNDING = 100.0
"""Units in the last place of the largest tensor's gradient that may be another's which is zero, as
those of the keys' biases are."""


@dataclass(frozen=True)
class StackedSegments:
    """Updates θ_s → θ_s + Δ_s, and the queries along them.

    Attributes
    ----------
    queries : Queries
    model : StackedModel
    theta, delta : {name: [S, *shape]}
    live : int
        How many test points' activations may be in memory.
    """

    queries: Queries
    model: StackedModel
    theta: Tensors
    delta: Tensors
    live: int

    def __len__(self) -> int:
        """How many updates there are (S)."""
        return len(next(iter(self.theta.values())))

    def values(self, points: torch.Tensor) -> torch.Tensor:
        """Return f of all ``points`` [n] before the updates, ``[S, n, K]``."""
        return self._everywhere(self.values_at, points, 0.0)

    def slopes(self, alpha: float, points: torch.Tensor) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` of all ``points`` [n] at ``θ_s + α Δ_s``, ``[S, n, K]``."""
        return self._everywhere(self.slopes_at, points, alpha)

    def _everywhere(
        self, function: Callable[..., torch.Tensor], points: torch.Tensor, alpha: float
    ) -> torch.Tensor:
        which = torch.arange(len(self), device=points.device).repeat_interleave(len(points))
        some = next(iter(self.theta.values()))
        places = some.new_full((len(which),), alpha)
        return function(which, points.repeat(len(self)), places).view(len(self), len(points), -1)

    def slopes_of(self, which: torch.Tensor, points: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return the slope of point ``points[m]`` on update ``which[m]`` at one α, ``[m, K]``."""
        some = next(iter(self.theta.values()))
        return self.slopes_at(which, points, some.new_full(points.shape, alpha))

    def values_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return f of point ``points[m]`` at ``θ + α_m Δ`` of update ``which[m]``, ``[m, K]``."""
        return self._in_parts(self.queries.values_of_stack, which, points, alpha)

    def slopes_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` at the same places, ``[m, K]``."""
        return self._in_parts(self.queries.slopes_of_stack, which, points, alpha)

    def _in_parts(
        self,
        function: Callable[[StackedModel, Stack, torch.Tensor], torch.Tensor],
        which: torch.Tensor,
        points: torch.Tensor,
        alpha: torch.Tensor,
    ) -> torch.Tensor:
        order = which.argsort(stable=True)
        parts = []
        for rows in order.split(max(1, self.live // LIVE_COPIES)):
            grid = Grid.of(which[rows])
            stack = self.at(grid, alpha[rows])
            parts.append(function(self.model, stack, grid.lay(points[rows]))[grid.slots])
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, order, found)

    def at(self, grid: Grid, alpha: torch.Tensor) -> Stack:
        """Return the parameters of a grid of rows, with ``alpha`` [m, ...]."""
        laid = grid.lay(alpha).view(len(grid.updates), -1)
        if len(grid.updates) == len(self):  # ascending, so all in order
            return Stack(self.theta, self.delta, laid)
        theta, delta = (
            {name: values[grid.updates] for name, values in part.items()}
            for part in (self.theta, self.delta)
        )
        return Stack(theta, delta, laid)


@dataclass(frozen=True)
class Grid:
    """Rows laid out as updates times as many rows as the longest of them has.

    Attributes
    ----------
    updates : int64 [Z]
    slots : int64 [m]
        Place of each row among the Z · R.
    size : int
        Z · R.
    """

    updates: torch.Tensor
    slots: torch.Tensor
    size: int

    @classmethod
    def of(cls, which: torch.Tensor) -> Grid:
        """Lay out rows of updates ``which`` [m], ascending."""
        updates, counts = which.unique_consecutive(return_counts=True)
        longest = int(counts.max())
        group = torch.arange(len(updates), device=which.device).repeat_interleave(counts)
        inside = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[group]
        return cls(updates, group * longest + inside, len(updates) * longest)

    def lay(self, values: torch.Tensor) -> torch.Tensor:
        """Put ``values`` [m, ...] into their places, zeros elsewhere."""
        found = values.new_zeros(self.size, *values.shape[1:])
        return found.index_copy_(0, self.slots, values)


def stacked_model(
    run: RecordedRun, queries: Queries, tracked: tuple[str, ...]
) -> StackedModel | None:
    """Return the model for computing several updates together, None where it cannot be.

    Gradients of two test points at two states must be those that are computed alone, and
    training must not have been under autocast.
    """
    walk, table = run.walk, run.walk.history.settings.table
    points = torch.arange(min(2, len(queries)), device=walk.device)
    if not len(points) or run.loss.autocast is not None:
        return None
    ends = torch.stack([walk.flat(walk.history.first), walk.flat(walk.history.last)])
    ones = torch.ones(len(points), dtype=walk.dtype, device=walk.device)
    found = StackedModel.of(run.model, table.names, queries.take(points)[0])
    if found is None:
        return None
    with differentiable_attention(), float32_products():
        try:
            stack = Stack(table.views(ends))
            both = queries.gradients_of_stack(found, stack, points.repeat(2), ones.repeat(2))
        except RuntimeError:  # a batch is not what it expects
            return None
        for place in range(2):
            fixed = table.views(ends[place])
            moving = {name: fixed.pop(name) for name in tracked}
            alone = queries.jacobian(moving, fixed, points, ones)
            norms = {name: wanted.norm() for name, wanted in alone.items()}
            noise = ROUNDING * torch.finfo(walk.dtype).eps * max(norms.values())
            for name, wanted in alone.items():
                given = torch.zeros_like(wanted)
                if name in both:
                    given = both[name].flat()[place].view_as(wanted)
                if (given - wanted).norm() > SAME[walk.dtype] * norms[name] + noise:
                    return None
    return found

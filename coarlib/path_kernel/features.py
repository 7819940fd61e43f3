"""The test features Φ_s = ∫ ∂f(θ_s + αΔ_s)/∂θ dα of a tile of test points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coarlib.history.gradients import differentiable_attention
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.stacked import StackedModel
from coarlib.history.walk import Block, Walk
from coarlib.path_kernel.integrals import Integrals
from coarlib.path_kernel.quadrature import Nodes, Quadrature
from coarlib.path_kernel.segments import Segments
from coarlib.path_kernel.stacked_segments import StackedIntegrals, StackedSegments

TIGHTER = 0.1
"""Share of the tolerance that is allowed to a point given once more."""


@dataclass(frozen=True)
class Feature:
    """Φ of the updates of a block.

    Attributes
    ----------
    phi : {name: [S, n·K, p]}
        For the tracked tensors.
    integral : float [S, n, K]
        ⟨Φ, Δ⟩ over all trained tensors, by the same nodes.
    change : float [S, n, K]
        f(θ_next) - f(θ), by two forward passes.
    """

    phi: Tensors
    integral: torch.Tensor
    change: torch.Tensor


class Features:
    """Integrates test gradients along updates.

    Parameters
    ----------
    queries : Queries
    tracked : tuple of str
        Tensors to differentiate with respect to.
    tolerance : float
        Of the quadrature, for one update.
    chunk_bytes : int
        Memory for the gradients that are computed at once.
    stacked : StackedModel, optional
        To compute several updates together.
    row_bytes : int
        With ``stacked``: memory that one test point's activations take.
    """

    def __init__(
        self,
        queries: Queries,
        tracked: tuple[str, ...],
        *,
        tolerance: float,
        chunk_bytes: int,
        stacked: StackedModel | None = None,
        row_bytes: int = 1,
    ) -> None:
        self._queries, self._tracked = queries, tracked
        self.quadrature = Quadrature(tolerance)
        self._chunk_bytes = chunk_bytes
        self._stacked, self._live = stacked, chunk_bytes // row_bytes
        self._values: dict[int, torch.Tensor] = {}
        self.begin(torch.arange(len(queries)))

    def begin(self, points: torch.Tensor) -> None:
        """Start with another tile of test points, int64 [n].

        Point n given as N + n is integrated to a tighter tolerance.
        """
        self._tile, self._values = points, {}
        self._share = torch.where(points < len(self._queries), 1.0, TIGHTER)

    def values(self, number: int, theta: Tensors) -> torch.Tensor:
        """Return the tile's outputs before update ``number``; kept for the neighbouring block."""
        if number not in self._values:
            while len(self._values) > 1:
                self._values.pop(next(iter(self._values)))
            with differentiable_attention():
                self._values[number] = self._queries.values(theta, self.points)
        return self._values[number]

    def at_ends(self, walk: Walk) -> list[torch.Tensor]:
        """Return the tile's outputs before and after the run, by the model as it was, [n, K]."""
        with differentiable_attention():
            return [self._queries.values(theta, self.points) for theta in walk.ends()]

    @property
    def points(self) -> torch.Tensor:
        """The tile."""
        return self._tile

    def of(self, block: Block) -> Feature:
        """Return Φ of the updates of a block."""
        last = block.updates[-1]
        segments, integrals = self._of_block(block)
        with differentiable_attention():
            first = self.values(block.numbers.start, block.updates[0].theta)[None]
            after = self.values(block.numbers.stop, last.theta_next)[None]
            if len(block) > 1:
                first = torch.cat([first, segments.values(self.points)[1:]])
            before, after = first, torch.cat([first[1:], after])
            change = after - before
            allowed = self.quadrature.allowed(before, after, self._share)
            integral = segments.slopes(0.5, self.points)
            good = ((change - integral).abs().amax(2) <= allowed).flatten()
            nodes = self._nodes(segments, before, after, integral, good)
            phi = integrals.of(self.points, nodes)
        flat = {name: values.flatten(3).flatten(1, 2) for name, values in phi.items()}
        return Feature(flat, nodes.integral.view_as(change), change)

    def _of_block(
        self, block: Block
    ) -> tuple[Segments | StackedSegments, Integrals | StackedIntegrals]:
        """Return how to evaluate on a block, and how to integrate."""
        if self._stacked is not None:
            stacked = StackedSegments(
                self._queries, self._stacked, block.theta, block.delta, self._live
            )
            return stacked, StackedIntegrals(stacked, self._tracked)
        size = sum(v.numel() * v.element_size() for v in block.delta.values()) // len(block)
        at_once = max(1, self._chunk_bytes // (3 * size))
        segments = Segments(self._queries, block.theta, block.delta, at_once)
        return segments, Integrals(segments, self._tracked, self._chunk_bytes)

    def _nodes(
        self,
        segments: Segments | StackedSegments,
        before: torch.Tensor,
        after: torch.Tensor,
        integral: torch.Tensor,
        good: torch.Tensor,
    ) -> Nodes:
        """Return the midpoint of the ``good`` pairs [S · n] and nodes inside the other updates."""
        pair, integral = good.nonzero().squeeze(1), integral.flatten(0, 1)
        half = torch.full_like(pair, 0.5, dtype=integral.dtype)
        middle = Nodes(pair, half, torch.ones_like(half), integral)
        if len(pair) == len(good):
            return middle
        bad = (~good).nonzero().squeeze(1)
        column = bad % len(self.points)
        ends = (values.flatten(0, 1)[bad] for values in (before, after))
        found = self.quadrature.nodes(
            segments, bad // len(self.points), self.points[column], *ends, share=self._share[column]
        )
        return Nodes(
            torch.cat([pair, bad[found.pair]]),
            torch.cat([half, found.alpha]),
            torch.cat([middle.weight, found.weight]),
            integral.index_copy(0, bad, found.integral),
        )

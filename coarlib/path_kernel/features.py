"""The test features Φ_s = ∫ ∂f(θ_s + αΔ_s)/∂θ dα of a tile of test points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from coarlib.path_kernel.stacked_integrals import StackedIntegrals
from coarlib.path_kernel.stacked_segments import StackedSegments

TIGHTER = 0.1
"""Share of the tolerance that is allowed to a point given once more."""
CACHE = 16 * 2**20
"""Bytes of Φ that are made and used before the next ones take their place, on a CPU."""


@dataclass(frozen=True)
class Feature:
    """Φ of some updates.

    Attributes
    ----------
    phi : {name: [S, n·K, p]}
        For the tracked tensors; valid until the next but one is asked for.
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
        self._memory: list[Tensors] = [{}, {}]  # for Φ of these updates, and of those before
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

    def parts(self, block: Block) -> list[slice]:
        """Return the updates of a block in parts; a CPU's cache holds Φ of one."""
        size = sum(block.theta[name][0].nbytes for name in self._tracked)
        size *= max(1, len(self.points) * self._queries.num_outputs)
        many = len(block) if self.points.device.type != "cpu" else max(1, CACHE // size)
        return [slice(b, min(b + many, len(block))) for b in range(0, len(block), many)]

    def of(self, block: Block, parts: Sequence[slice]) -> Iterator[Feature]:
        """Yield Φ of ``parts`` of a block."""
        last = block.updates[-1]
        segments = self._segments(block)
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
            integral = nodes.integral.view_as(change)
            if isinstance(segments, Segments):
                whole = Integrals(segments, self._tracked, self._chunk_bytes)
                phi = whole.of(self.points, nodes)
            else:
                stacked = StackedIntegrals(segments, self._tracked, self.points)
                pieces = stacked.pieces(nodes)
        if isinstance(segments, Segments):
            flat = {name: values.flatten(3).flatten(1, 2) for name, values in phi.items()}
            yield Feature(flat, integral, change)
            return
        for part in parts:
            self._memory.reverse()
            phi = stacked.sums(pieces, part, self._memory[0])
            yield Feature(phi, integral[part], change[part])

    def _segments(self, block: Block) -> Segments | StackedSegments:
        """Return how to evaluate on a block."""
        theta, delta = block.theta, block.delta
        if self._stacked is not None:
            return StackedSegments(self._queries, self._stacked, theta, delta, self._live)
        size = sum(v.numel() * v.element_size() for v in delta.values()) // len(block)
        return Segments(self._queries, theta, delta, max(1, self._chunk_bytes // (3 * size)))

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

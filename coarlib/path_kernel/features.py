"""The test feature Φ_s = ∫ ∂f(θ_s + αΔ_s)/∂θ dα of a tile of test points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coarlib.path_kernel.gradients import differentiable_attention
from coarlib.path_kernel.parameters import Tensors
from coarlib.path_kernel.quadrature import Nodes, Quadrature
from coarlib.path_kernel.queries import Queries
from coarlib.path_kernel.walk import Step


@dataclass(frozen=True)
class Feature:
    """Φ of one update.

    Attributes
    ----------
    phi : {name: [n, K, *shape]}
        For the tracked tensors.
    integral : float [n, K]
        ⟨Φ, Δ⟩ over all trained tensors, by the same nodes.
    change : float [n, K]
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
    """

    def __init__(
        self, queries: Queries, tracked: tuple[str, ...], tolerance: float, chunk_bytes: int
    ) -> None:
        self._queries, self._tracked = queries, tracked
        self.quadrature = Quadrature(queries, tolerance)
        self._chunk_bytes = chunk_bytes
        self._values: dict[int, torch.Tensor] = {}
        self._tile: torch.Tensor | None = None

    def begin(self, points: torch.Tensor) -> None:
        """Start with another tile of test points, int64 [n]."""
        self._tile, self._values = points, {}

    def values(self, number: int, theta: Tensors) -> torch.Tensor:
        """Return the tile's outputs before update ``number``; kept for the neighbouring update."""
        if number not in self._values:
            while len(self._values) > 1:
                self._values.pop(next(iter(self._values)))
            with differentiable_attention():
                self._values[number] = self._queries.values(theta, self.points)
        return self._values[number]

    @property
    def points(self) -> torch.Tensor:
        """The tile."""
        if self._tile is None:
            self._tile = torch.arange(len(self._queries))
        return self._tile

    def nodes(self, step: Step) -> tuple[Nodes, Tensors, torch.Tensor]:
        """Return quadrature nodes (points as positions in the tile), Δ, and f's change [n, K]."""
        before = self.values(step.number, step.theta)
        after = self.values(step.number + 1, step.theta_next)
        delta = {name: step.theta_next[name] - values for name, values in step.theta.items()}
        with differentiable_attention():
            nodes = self.quadrature.nodes(step.theta, delta, self.points, before, after)
        return nodes, delta, after - before

    def of(self, step: Step) -> Feature:
        """Return Φ of one update."""
        nodes, delta, change = self.nodes(step)
        count, outputs = change.shape
        phi = {
            name: change.new_zeros(count, outputs, *step.theta[name].shape)
            for name in self._tracked
        }
        sum_ = _Sum(phi, step.theta, delta, nodes, _positions(self.points, nodes.points))
        alphas, which = nodes.alpha.unique(return_inverse=True)
        sizes = torch.bincount(which, minlength=len(alphas))
        with differentiable_attention():
            for index in (sizes > 1).nonzero().squeeze(1).tolist():
                self._add_shared(sum_, alphas[index], (which == index).nonzero().squeeze(1))
            self._add_single(sum_, (sizes[which] == 1).nonzero().squeeze(1))
        return Feature(phi, nodes.integral, change)

    def _chunk(self, rows: torch.Tensor, row_bytes: int) -> tuple[torch.Tensor, ...]:
        return rows.split(max(1, self._chunk_bytes // row_bytes))

    def _add_shared(self, sum_: _Sum, alpha: torch.Tensor, rows: torch.Tensor) -> None:
        """Add nodes that lie at the same place of the update."""
        fixed = {name: values + alpha * sum_.delta[name] for name, values in sum_.theta.items()}
        moving = {name: fixed.pop(name) for name in self._tracked}
        for part in self._chunk(rows, _row_bytes(sum_.phi)):
            sum_.add(self._queries.jacobian(moving, fixed, sum_.nodes.points[part]), part)

    def _add_single(self, sum_: _Sum, rows: torch.Tensor) -> None:
        """Add nodes that lie at a place of their own."""
        if not len(rows):
            return
        parameters = sum(v.numel() * v.element_size() for v in sum_.theta.values())
        nodes = sum_.nodes
        for part in self._chunk(rows, _row_bytes(sum_.phi) + parameters):
            place = (nodes.alpha[part], nodes.points[part])
            found = self._queries.jacobian_at(sum_.theta, sum_.delta, self._tracked, place)
            sum_.add(found, part)


@dataclass(frozen=True)
class _Sum:
    """Φ while it is being summed over nodes; ``place`` [M] is each node's position in the tile."""

    phi: Tensors
    theta: Tensors
    delta: Tensors
    nodes: Nodes
    place: torch.Tensor

    def add(self, found: Tensors, part: torch.Tensor) -> None:
        """Add the gradients ``[m, K, *shape]`` of the nodes ``part``, times their weights."""
        weight, place = self.nodes.weight[part], self.place[part]
        count = len(next(iter(self.phi.values())))
        in_order = torch.arange(count, device=place.device)
        whole = torch.equal(place, in_order) and bool((weight == weight[0]).all())
        for name, values in found.items():
            if whole:
                self.phi[name].add_(values, alpha=float(weight[0]))
            else:
                scaled = values * weight.view(-1, *[1] * (values.ndim - 1))
                self.phi[name].index_add_(0, place, scaled)


def _row_bytes(phi: Tensors) -> int:
    return sum(values[0].numel() * values.element_size() for values in phi.values())


def _positions(tile: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    order = tile.argsort()
    return order[torch.searchsorted(tile[order], points)]

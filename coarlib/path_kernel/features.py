"""The test feature Φ_s = ∫ ∂f(θ_s + αΔ_s)/∂θ dα of a tile of test points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coarlib.history.gradients import differentiable_attention
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.walk import Update, Walk
from coarlib.path_kernel.quadrature import Nodes, Quadrature
from coarlib.path_kernel.segments import Segments

FEW_OUTPUTS = 4
TIGHTER = 0.01
"""Share of the tolerance that is allowed to a point given once more."""


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
        self.quadrature = Quadrature(tolerance)
        self._chunk_bytes = chunk_bytes
        self._values: dict[int, torch.Tensor] = {}
        self.begin(torch.arange(len(queries)))

    def begin(self, points: torch.Tensor) -> None:
        """Start with another tile of test points, int64 [n].

        Point n given as N + n is integrated to a tighter tolerance.
        """
        self._tile, self._values = points, {}
        self._share = torch.where(points < len(self._queries), 1.0, TIGHTER)

    def values(self, number: int, theta: Tensors) -> torch.Tensor:
        """Return the tile's outputs before update ``number``; kept for the neighbouring update."""
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

    def of(self, step: Update) -> Feature:
        """Return Φ of one update."""
        before = self.values(step.number, step.theta)
        after = self.values(step.number + 1, step.theta_next)
        change, allowed = after - before, self.quadrature.allowed(before, after, self._share)
        delta = {name: step.theta_next[name] - values for name, values in step.theta.items()}
        with differentiable_attention():
            middle = {
                name: torch.lerp(v, step.theta_next[name], 0.5) for name, v in step.theta.items()
            }
            cheap = self._queries.num_outputs < FEW_OUTPUTS and len(self._tracked) == len(delta)
            if cheap:  # a slope costs as much as the gradient that it follows from
                phi = self._gradient(middle, self.points)
                parts = [v.flatten(2) @ delta[name].flatten() for name, v in phi.items()]
                integral = torch.stack(parts).sum(0)
            else:
                integral = self._queries.slopes(middle, delta, self.points)
            good = (change - integral).abs().amax(1) <= allowed
            self.quadrature.evaluations += len(good) if cheap else int(good.sum())
            if not cheap:
                phi = self._gradient_of(middle, good)
            if not good.all():
                bad = (~good).nonzero().squeeze(1)
                integral[bad] = self._refine(phi, step, delta, bad)
        return Feature(phi, integral, change)

    def _gradient(self, theta: Tensors, points: torch.Tensor) -> Tensors:
        """Return the gradients of some points at one θ, ``{name: [n, K, *shape]}``."""
        fixed = dict(theta)
        moving = {name: fixed.pop(name) for name in self._tracked}
        size = sum(v.numel() * v.element_size() for v in moving.values())
        dtype = next(iter(theta.values())).dtype
        parts = [
            self._queries.jacobian(moving, fixed, some, torch.ones_like(some, dtype=dtype))
            for some in self._chunk(points, self._queries.num_outputs * size)
        ]
        if len(parts) == 1:
            return {name: values.contiguous() for name, values in parts[0].items()}
        return {name: torch.cat([part[name] for part in parts]) for name in moving}

    def _gradient_of(self, theta: Tensors, chosen: torch.Tensor) -> Tensors:
        """Return Φ of the tile with gradients of the ``chosen`` points, zeros elsewhere."""
        if chosen.all():
            return self._gradient(theta, self.points)
        phi = {
            name: theta[name].new_zeros(len(chosen), self._queries.num_outputs, *theta[name].shape)
            for name in self._tracked
        }
        if chosen.any():
            for name, values in self._gradient(theta, self.points[chosen]).items():
                phi[name][chosen] = values
        return phi

    def _refine(
        self, phi: Tensors, step: Update, delta: Tensors, bad: torch.Tensor
    ) -> torch.Tensor:
        """Integrate the points ``bad`` of the tile by nodes inside the update."""
        before, after = self._values[step.number][bad], self._values[step.number + 1][bad]
        size = sum(v.numel() * v.element_size() for v in delta.values())
        segments = Segments.single(
            self._queries, step.theta, delta, max(1, self._chunk_bytes // (3 * size))
        )
        points = self.points[bad]
        nodes = self.quadrature.nodes(
            segments, torch.zeros_like(points), points, before, after, share=self._share[bad]
        )
        for values in phi.values():
            values[bad] = 0
        sum_ = _Sum(phi, step.theta, delta, nodes, _positions(self.points, nodes.points))
        alphas, which = nodes.alpha.unique(return_inverse=True)
        sizes = torch.bincount(which, minlength=len(alphas))
        for index in (sizes > 1).nonzero().squeeze(1).tolist():
            self._add_shared(sum_, alphas[index], (which == index).nonzero().squeeze(1))
        self._add_single(sum_, (sizes[which] == 1).nonzero().squeeze(1))
        return nodes.integral

    def _chunk(self, rows: torch.Tensor, row_bytes: int) -> tuple[torch.Tensor, ...]:
        return rows.split(max(1, self._chunk_bytes // row_bytes))

    def _add_shared(self, sum_: _Sum, alpha: torch.Tensor, rows: torch.Tensor) -> None:
        """Add nodes that lie at the same place of the update."""
        fixed = {name: values + alpha * sum_.delta[name] for name, values in sum_.theta.items()}
        moving = {name: fixed.pop(name) for name in self._tracked}
        for part in self._chunk(rows, _row_bytes(sum_.phi)):
            points, weight = sum_.nodes.points[part], sum_.nodes.weight[part]
            sum_.add(self._queries.jacobian(moving, fixed, points, weight), part)

    def _add_single(self, sum_: _Sum, rows: torch.Tensor) -> None:
        """Add nodes that lie at a place of their own."""
        if not len(rows):
            return
        parameters = sum(v.numel() * v.element_size() for v in sum_.theta.values())
        nodes = sum_.nodes
        for part in self._chunk(rows, _row_bytes(sum_.phi) + parameters):
            place = (nodes.alpha[part], nodes.weight[part], nodes.points[part])
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
        """Add the weighted gradients ``[m, K, *shape]`` of the nodes ``part``."""
        for name, values in found.items():
            self.phi[name].index_add_(0, self.place[part], values)


def _row_bytes(phi: Tensors) -> int:
    return sum(values[0].numel() * values.element_size() for values in phi.values())


def _positions(tile: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    order = tile.argsort()
    return order[torch.searchsorted(tile[order], points)]

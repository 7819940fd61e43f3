"""Integrals of test gradients along one update, point by point, of any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from coarlib.history.parameters import Tensors
from coarlib.path_kernel.quadrature import Nodes
from coarlib.path_kernel.segments import Segments


@dataclass(frozen=True)
class Integrals:
    """Adds up gradients in full.

    Attributes
    ----------
    segments : Segments
        One update.
    tracked : tuple of str
    chunk_bytes : int
        Memory for the gradients that are computed at once.
    """

    segments: Segments
    tracked: tuple[str, ...]
    chunk_bytes: int

    def of(self, points: torch.Tensor, nodes: Nodes) -> Tensors:
        """Return Φ of the ``points`` [n], ``{name: [1, n, K, *shape]}``."""
        alphas, which = nodes.alpha.unique(return_inverse=True)
        sizes = torch.bincount(which, minlength=len(alphas))
        rows = nodes.pair.argsort() if len(alphas) == 1 else None
        if rows is not None and len(rows) == len(points):  # one node a point
            parts = list(self._shared(alphas[0], points, nodes, rows))
            joined = {name: torch.cat([part[name] for _, part in parts]) for name in self.tracked}
            return {name: values[None] for name, values in joined.items()}
        outputs = nodes.integral.shape[1]
        theta = {name: self.segments.theta[name][0] for name in self.tracked}
        phi = {n: v.new_zeros(len(points), outputs, *v.shape) for n, v in theta.items()}
        for index in (sizes > 1).nonzero().squeeze(1).tolist():
            rows = (which == index).nonzero().squeeze(1)
            for part, found in self._shared(alphas[index], points, nodes, rows):
                self._add(phi, nodes.pair[part], found)
        for part, found in self._single(points, nodes, (sizes[which] == 1).nonzero().squeeze(1)):
            self._add(phi, nodes.pair[part], found)
        return {name: values[None] for name, values in phi.items()}

    @staticmethod
    def _add(phi: Tensors, pairs: torch.Tensor, found: Tensors) -> None:
        for name, values in found.items():
            phi[name].index_add_(0, pairs, values)

    def _shared(
        self, alpha: torch.Tensor, points: torch.Tensor, nodes: Nodes, rows: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, Tensors]]:
        """Yield the weighted gradients of nodes at the same place of the update."""
        theta, delta = self._ends()
        fixed = {name: values + alpha * delta[name] for name, values in theta.items()}
        moving = {name: fixed.pop(name) for name in self.tracked}
        for part in rows.split(max(1, self.chunk_bytes // self._bytes(nodes))):
            chosen, weight = points[nodes.pair[part]], nodes.weight[part]
            yield part, self.segments.queries.jacobian(moving, fixed, chosen, weight)

    def _single(
        self, points: torch.Tensor, nodes: Nodes, rows: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, Tensors]]:
        """Yield the weighted gradients of nodes at a place of their own."""
        theta, delta = self._ends()
        parameters = sum(v.numel() * v.element_size() for v in theta.values())
        if len(rows):
            for part in rows.split(max(1, self.chunk_bytes // (self._bytes(nodes) + parameters))):
                place = nodes.alpha[part], nodes.weight[part], points[nodes.pair[part]]
                yield part, self.segments.queries.jacobian_at(theta, delta, self.tracked, place)

    def _ends(self) -> tuple[Tensors, Tensors]:
        both = self.segments.theta, self.segments.delta
        theta, delta = ({name: values[0] for name, values in part.items()} for part in both)
        return theta, delta

    def _bytes(self, nodes: Nodes) -> int:
        """Bytes of one point's gradients."""
        moving = [self.segments.theta[name][0] for name in self.tracked]
        return nodes.integral.shape[1] * sum(v.numel() * v.element_size() for v in moving)

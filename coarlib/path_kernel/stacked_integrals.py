"""Integrals of test gradients along several updates at once, kept as factors until they are used.

The integral of one point's K gradients along an update is as large as K models; its factors are
smaller by the width of a layer. So all nodes of many updates go through the model together, and
the integrals are written for a few updates at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coarlib.history.factors import Runs, Summed, Sums, in_full
from coarlib.history.gradients import differentiable_attention
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.stacked import Stack, StackedModel
from coarlib.path_kernel.quadrature import Nodes
from coarlib.path_kernel.stacked_segments import LIVE_COPIES, Grid, StackedSegments

SPREAD = 2
"""Pairs go together that have up to so many times the nodes of another."""


@dataclass(frozen=True)
class Piece:
    """Gradients of some (update, point) pairs, summed over their nodes when they are needed.

    Attributes
    ----------
    pairs : int64 [m]
        Ascending.
    sums : {name: Sums}
        Of m groups each.
    """

    pairs: torch.Tensor
    sums: dict[str, Sums]


@dataclass(frozen=True)
class StackedIntegrals:
    """Integrates test gradients along the updates of segments.

    Attributes
    ----------
    segments : StackedSegments
    tracked : tuple of str
    points : int64 [n]
    """

    segments: StackedSegments
    tracked: tuple[str, ...]
    points: torch.Tensor

    def pieces(self, nodes: Nodes) -> list[Piece]:
        """Return the gradients at all nodes of the points on all updates.

        Pairs are computed together with those that have about as many nodes.
        """
        counts = torch.bincount(nodes.pair, minlength=len(self.segments) * len(self.points))
        order, starts = nodes.pair.argsort(stable=True), counts.cumsum(0) - counts
        found = []
        for pairs, size in self._parts(counts, nodes):
            inside = torch.arange(size, device=pairs.device)
            taken = inside < counts[pairs][:, None]
            node = order[torch.where(taken, starts[pairs][:, None] + inside, 0)]
            found.append(self._gradients(pairs, nodes.alpha[node], nodes.weight[node] * taken))
        return found

    def sums(self, pieces: list[Piece], updates: slice, memory: Tensors) -> Tensors:
        """Return Φ on some updates, ``{name: [s, n · K, p]}``.

        It is written to ``memory``, which keeps it for the next call.
        """
        points, outputs = len(self.points), self.segments.queries.num_outputs
        first, last = updates.start * points, updates.stop * points
        phi: Tensors = {}
        for name in self.tracked:
            like = self.segments.theta[name]
            if name not in memory or len(memory[name]) < (last - first) * outputs:
                memory[name] = like.new_empty((last - first) * outputs, like[0].numel())
            phi[name] = memory[name][: (last - first) * outputs]
            if not all(name in piece.sums for piece in pieces):  # it is not used
                phi[name].zero_()
        for piece in pieces:
            runs = _runs(piece.pairs, first, last) if piece.pairs.device.type == "cpu" else None
            for name, own in piece.sums.items():
                found = phi[name].view(-1, *own.shape[1:])
                if runs is None:  # an accelerator: launches cost more than copies; it takes all
                    found.index_copy_(0, piece.pairs - first, in_full(own, found))
                else:
                    own.write(found, runs)
        count = updates.stop - updates.start
        return {name: values.unflatten(0, (count, -1)) for name, values in phi.items()}

    def _parts(self, counts: torch.Tensor, nodes: Nodes) -> list[tuple[torch.Tensor, int]]:
        """Group pairs of about as many nodes ``counts``; each group with the most of them."""
        most = max(1, self.segments.live // (LIVE_COPIES + nodes.integral.shape[1]))
        ordered, pairs = counts.sort(stable=True)
        many, found, begin = ordered.tolist(), [], 0
        while begin < len(many):
            end = begin + 1
            while end < len(many) and _fits(end + 1 - begin, many[begin], many[end], most):
                end += 1
            found.append((pairs[begin:end].sort().values, many[end - 1]))
            begin = end
        return found

    def _gradients(self, pairs: torch.Tensor, alpha: torch.Tensor, weight: torch.Tensor) -> Piece:
        """Differentiate at the nodes ``alpha, weight`` [m, M] of ``pairs`` [m]."""
        nodes, points = alpha.shape[1], self.points[pairs % len(self.points)]
        grid = Grid.of(pairs // len(self.points))
        stack = self.segments.at(grid, alpha)
        if bool((alpha == 0.5).all()):  # the midpoint rule: one product a layer instead of two
            stack = Stack({n: v + 0.5 * stack.delta[n] for n, v in stack.theta.items()})
        repeated = grid.lay(points).repeat_interleave(nodes)
        weights = grid.lay(weight).flatten()
        found = self.segments.queries.gradients_of_stack(
            self.segments.model, stack, repeated, weights
        )
        which = slice(None) if grid.size == len(pairs) else grid.slots
        sums = {n: found[n].groups(nodes, which) for n in self.tracked if n in found}
        for name, own in sums.items():
            if found[name].left.numel() >= own.shape.numel():  # factors would take more memory
                sums[name] = Summed(in_full(own, weight))
        return Piece(pairs, sums)


def _runs(pairs: torch.Tensor, first: int, last: int) -> Runs:
    """Return the stretches of ``pairs``, ascending, within ``first`` to ``last`` side by side."""
    begin, end = torch.searchsorted(pairs, pairs.new_tensor([first, last])).tolist()
    inside = pairs[begin:end]
    breaks = ((inside[1:] - inside[:-1]) != 1).nonzero().squeeze(1) + 1
    begins = [0, *breaks.tolist()] if end > begin else []
    places = (inside[begins] - first).tolist()
    return [
        (slice(begin + here, begin + stop), slice(place, place + stop - here))
        for here, stop, place in zip(begins, [*begins[1:], end - begin], places, strict=False)
    ]


def _fits(pairs: int, fewest: int, longest: int, most: int) -> bool:
    """Whether so many pairs of ``fewest`` to ``longest`` nodes may go together."""
    # Single nodes are midpoints.
    alike = longest == 1 or (fewest > 1 and longest <= SPREAD * fewest)
    return alike and pairs * longest <= most


def node_bytes(queries: Queries, model: StackedModel, theta: Tensors) -> int:
    """Return the bytes of the factors of one test point's gradients at one node."""
    stack = Stack({name: values[None] for name, values in theta.items()})
    some = next(iter(theta.values()))
    one, weight = some.new_zeros(1, dtype=torch.int64), some.new_ones(1)
    with differentiable_attention():
        found = queries.gradients_of_stack(model, stack, one, weight)
    return sum(own.left.nbytes for own in found.values())

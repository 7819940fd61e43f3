"""Several updates at once: outputs, and their slopes along each update, in batched passes.

A small model spends its time in calling operations, not in computing; S updates in one pass cost
hardly more than one. A large one is computed an update at a time, by the plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import vmap

from coarlib.history.parameters import ParameterTable, Tensors
from coarlib.history.queries import Queries

FULL_ENOUGH = 0.5
"""Share of (update, point) pairs wanted from which all pairs are computed together."""


@dataclass(frozen=True)
class Segments:
    """Updates θ_s → θ_s + Δ_s, and the queries along them.

    Attributes
    ----------
    queries : Queries
    theta, delta : {name: [S, *shape]}
        Parameters before the updates, and the updates.
    at_once : int
        How many points with parameters of their own to evaluate in one pass.
    """

    queries: Queries
    theta: Tensors
    delta: Tensors
    at_once: int

    @classmethod
    def of_path(
        cls, queries: Queries, table: ParameterTable, path: torch.Tensor, at_once: int
    ) -> Segments:
        """Take the S updates between the S + 1 states ``path`` [S + 1, P]."""
        return cls(queries, table.views(path[:-1]), table.views(path[1:] - path[:-1]), at_once)

    def __len__(self) -> int:
        """How many updates there are (S)."""
        return len(next(iter(self.theta.values())))

    def pick(self, which: torch.Tensor) -> Segments:
        """Return some of the updates, int64 [s]."""
        return Segments(
            self.queries, _rows(self.theta, which), _rows(self.delta, which), self.at_once
        )

    def values(self, points: torch.Tensor) -> torch.Tensor:
        """Return f of all ``points`` [n] before the updates, ``[S, n, K]``."""
        return over_updates(lambda at: self.queries.values(at, points), self.theta)

    def slopes(self, alpha: float, points: torch.Tensor) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` of all ``points`` [n] at ``θ_s + α Δ_s``, ``[S, n, K]``."""
        here = {name: values + alpha * self.delta[name] for name, values in self.theta.items()}
        return over_updates(
            lambda at, along: self.queries.slopes(at, along, points), here, self.delta
        )

    def slopes_of(self, which: torch.Tensor, points: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return the slope of point ``points[m]`` on update ``which[m]`` at one α, ``[m, K]``."""
        updates, row = which.unique(return_inverse=True)
        tile, column = points.unique(return_inverse=True)
        if len(which) < FULL_ENOUGH * len(updates) * len(tile):
            some = next(iter(self.theta.values()))
            return self.slopes_at(which, points, some.new_full(points.shape, alpha))
        chosen = self if len(updates) == len(self) else self.pick(updates)
        return chosen.slopes(alpha, tile)[row, column]

    def values_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return f of point ``points[m]`` at ``θ + α_m Δ`` of update ``which[m]``, ``[m, K]``."""
        return self._each(self.queries.value_along, which, points, alpha)

    def slopes_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return ``⟨∂f/∂θ, Δ⟩`` at the same places, ``[m, K]``."""
        return self._each(self.queries.slope_along, which, points, alpha)

    def _each(
        self,
        function: Callable[..., torch.Tensor],
        which: torch.Tensor,
        points: torch.Tensor,
        alpha: torch.Tensor,
    ) -> torch.Tensor:
        """Evaluate a function of one point at a place of its own."""
        one = len(self) == 1
        own = None if one else 0
        each = vmap(function, in_dims=(own, own, 0, 0, 0))
        parts = []
        for rows in torch.arange(len(which), device=which.device).split(self.at_once):
            updates = which[:1] if one else which[rows]
            ends = [_rows(part, updates) for part in (self.theta, self.delta)]
            if one:
                ends = [{name: values[0] for name, values in part.items()} for part in ends]
            places = (alpha[rows], *self.queries.take(points[rows]))
            with torch.no_grad():
                parts.append(each(*ends, *places))
        return torch.cat(parts)


def over_updates(function: Callable[..., torch.Tensor], *stacks: Tensors) -> torch.Tensor:
    """Apply a function of one update's tensors to stacks ``{name: [S, *shape]}`` of them."""
    if all(len(values) == 1 for values in stacks[0].values()):
        return function(*({name: values[0] for name, values in part.items()} for part in stacks))[
            None
        ]
    return vmap(function)(*stacks)


def _rows(tensors: Tensors, which: torch.Tensor) -> Tensors:
    return {name: values[which] for name, values in tensors.items()}

"""What the prior is about: guesses of the weights, each with a multiple for every group."""

from __future__ import annotations

import torch

__all__ = ["PriorMean"]

SMALLEST = 1e-9  # of a group's normal matrix, relative to its trace: guesses may be the same


class PriorMean:
    """The sum of guesses times their multiples, one a group of components.

    Parameters
    ----------
    guesses : float64 [S, N, T]
        Gradients, leave-one-out effects, another fit …
    groups : int64 [N]
        The group (layer) of each component.
    """

    def __init__(self, guesses: torch.Tensor, groups: torch.Tensor) -> None:
        self._guesses, self._groups = guesses, groups
        self._count = int(groups.max()) + 1 if len(groups) else 0
        self.multiples = guesses.new_zeros(self._count, len(guesses))

    @property
    def centre(self) -> torch.Tensor:
        """The prior mean μ, [N, T]."""
        each = self.multiples[self._groups]  # [N, S]
        return torch.einsum("ns,snt->nt", each, self._guesses)

    def fit(self, precision: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Set the multiples by weighted least squares on observed weights; return the mean."""
        size = len(self._guesses)
        normal = self._guesses.new_zeros(self._count, size, size)
        right = self._guesses.new_zeros(self._count, size)
        for a in range(size):
            weighted = self._guesses[a] * precision
            right[:, a].index_add_(0, self._groups, (weighted * observed).sum(1))
            for b in range(size):
                part = (weighted * self._guesses[b]).sum(1)
                normal[:, a, b].index_add_(0, self._groups, part)
        trace = normal.diagonal(dim1=1, dim2=2).sum(1)
        normal.diagonal(dim1=1, dim2=2).add_((SMALLEST * trace + 1e-300)[:, None])
        self.multiples = torch.linalg.solve(normal, right[:, :, None])[:, :, 0]
        return self.centre

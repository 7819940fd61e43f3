"""Parts of updates with a quadrature rule on each, and how far it misses what is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GAUSS_2 = 0.5 - 0.5 / 3**0.5
"""First node of the two-point rule on [0, 1]; the second is 1 minus it, both weights 1/2."""

_KINK_MARGIN = 0.02


def _share(
    change: torch.Tensor,
    slope_1: torch.Tensor,
    slope_2: torch.Tensor,
    share: torch.Tensor,
    allowed: torch.Tensor,
) -> torch.Tensor:
    """Fit the first node's weight [I] to the changes [I, K] where ``share`` is not good enough."""
    if change.shape[1] == 1:
        return share
    jump = slope_1 - slope_2
    error = (change - slope_2 - share[:, None] * jump).abs().amax(1)
    norm = jump.square().sum(1).clamp(min=torch.finfo(change.dtype).tiny)
    fitted = (((change - slope_2) * jump).sum(1) / norm).clamp(0, 1)
    return torch.where(error > allowed, fitted, share)


@dataclass
class Intervals:
    """Parts [a, b] of points' updates, with values at both ends and slopes at two nodes.

    Attributes
    ----------
    point : int64 [I]
    a, b : float [I]
    at_a, at_b, slope_1, slope_2 : float [I, K]
    share : float [I]
        Weight of the first node; the second has the rest.
    first : float [I]
        Place of the first node over the width; the second lies opposite.
    """

    point: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    at_a: torch.Tensor
    at_b: torch.Tensor
    slope_1: torch.Tensor
    slope_2: torch.Tensor
    share: torch.Tensor
    first: torch.Tensor

    @property
    def width(self) -> torch.Tensor:
        """Length of each, [I]."""
        return self.b - self.a

    @property
    def integral(self) -> torch.Tensor:
        """The rule's value on each, [I, K]."""
        share = self.share[:, None]
        return self.width[:, None] * (share * self.slope_1 + (1 - share) * self.slope_2)

    @property
    def errors(self) -> torch.Tensor:
        """By how much it misses the known change, [I, K]."""
        return (self.at_b - self.at_a - self.integral).abs()

    def pick(self, rows: torch.Tensor) -> Intervals:
        """Return some of them."""
        return Intervals(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def join(self, other: Intervals) -> Intervals:
        """Return these and others."""
        return Intervals(
            *(
                torch.cat([getattr(self, name), getattr(other, name)])
                for name in self.__dataclass_fields__
            )
        )

    def fit(self, allowed: torch.Tensor) -> None:
        """Fit the weights of intervals whose error is above ``allowed [I]``."""
        width = self.width[:, None]
        slopes = (self.slope_1 * width, self.slope_2 * width)
        self.share = _share(self.at_b - self.at_a, *slopes, self.share, allowed)

    def kink(self) -> torch.Tensor:
        """Where a single kink would explain each interval's error; the middle where none would."""
        worst = self.errors.argmax(1, keepdim=True)
        slope_1, slope_2, at_a, at_b = (
            values.gather(1, worst).squeeze(1)
            for values in (self.slope_1, self.slope_2, self.at_a, self.at_b)
        )
        place = (at_b - at_a + slope_1 * self.a - slope_2 * self.b) / (slope_1 - slope_2)
        margin = _KINK_MARGIN * self.width
        inside = (place > self.a + margin) & (place < self.b - margin)
        return torch.where(inside, place, (self.a + self.b) / 2)

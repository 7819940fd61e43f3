"""Adaptive quadrature of the test gradient along one update, point by point.

The exact integral of the slope over any part of an update is known from two forward passes:
∫_a^b ⟨∂f(θ + αΔ)/∂θ, Δ⟩ dα = f(b) - f(a). So the error of a rule is *measured*, for every point
and output, and refined only where it is too large. Slopes are forward-mode derivatives, which
cost two forward passes for all outputs together; the gradients themselves are computed afterwards,
at the nodes that were chosen.

Rules: the midpoint, else two Gauss-Legendre nodes, else the interval is split. The gradient of a
network of piecewise linear activations jumps at kinks; with one kink at t the integral is t times
the gradient left of it plus 1 - t times the one right of it, for all outputs at once. So the
weight of the first of two nodes is fitted to the K known changes; not where K = 1, when the fit
would consume the measured error. The place of a split follows from
f(a) + s1 (t - a) = f(b) - s2 (b - t); splits alternate between it and the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from coarlib.errors import HistoryError

GAUSS_2 = 0.5 - 0.5 / 3**0.5
"""First node of the two-point rule on [0, 1]; the second is 1 minus it, both weights 1/2."""

DEFAULT_TOLERANCE = {torch.float64: 2e-7, torch.float32: 3e-5}
ROUNDING = 32.0
"""A tolerance below this many units in the last place of f cannot be met and is raised to it."""

MAX_ROUNDS = 40
MAX_INTERVALS = {torch.float64: 256, torch.float32: 64}
"""Parts of one point's update (in float32 rounding leaves nothing to more of them); the residual
that is left then is reported."""

_KINK_MARGIN = 0.02


def checked_tolerance(tolerance: float | None, dtype: torch.dtype) -> float:
    """Return the tolerance, by default that of ``dtype``.

    Raises
    ------
    HistoryError
        If it is negative or no number.
    """
    if tolerance is None:
        return DEFAULT_TOLERANCE[dtype]
    if not 0 <= tolerance < float("inf"):
        raise HistoryError(f"the tolerance must be a number of at least 0, not {tolerance}")
    return float(tolerance)


@dataclass(frozen=True)
class Nodes:
    """Where to evaluate gradients on one update.

    Attributes
    ----------
    pair : int64 [M]
        Which of the n (update, point) pairs each evaluation is of.
    alpha, weight : float [M]
        Place on the update and quadrature weight; weights of a pair sum to 1.
    integral : float [n, K]
        The rule's value of f(θ_next) - f(θ).
    """

    pair: torch.Tensor
    alpha: torch.Tensor
    weight: torch.Tensor
    integral: torch.Tensor


class Measured(Protocol):
    """Updates whose outputs and slopes can be evaluated anywhere on them."""

    def slopes_of(self, which: torch.Tensor, points: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return the slope of point ``points[m]`` on update ``which[m]`` at one α, ``[m, K]``."""

    def values_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return the outputs at α of each, ``[m, K]``."""

    def slopes_at(
        self, which: torch.Tensor, points: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Return the slopes at α of each, ``[m, K]``."""


class Quadrature:
    """Chooses nodes for each point of a tile on each update.

    Parameters
    ----------
    tolerance : float
        Largest absolute error of any output over one update.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.evaluations = 0

    def allowed(
        self, before: torch.Tensor, after: torch.Tensor, share: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        """Return the tolerance of each point ``[...]`` from its outputs, never below rounding.

        ``share`` of the tolerance is allowed.
        """
        scale = before.abs().amax(-1) + after.abs().amax(-1)
        rounding = ROUNDING * torch.finfo(before.dtype).eps * scale
        return torch.maximum(rounding, torch.as_tensor(self.tolerance * share).to(rounding))

    def nodes(
        self,
        segments: Measured,
        which: torch.Tensor,
        points: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        *,
        share: torch.Tensor | float = 1.0,
    ) -> Nodes:
        """Choose nodes inside updates.

        Parameters
        ----------
        segments : Measured
        which, points : int64 [n]
            Updates, and test points to integrate along them.
        before, after : float [n, K]
            Outputs at both ends.
        share : float [n] or float
            Of the tolerance.
        """
        pool = _Pool(before.new_zeros(0, 2), points.new_zeros(0))
        refine = _Refinement(segments, which, points, self.allowed(before, after, share))
        integral = refine.run(before, after, pool)
        self.evaluations += len(pool.rows)
        return Nodes(pool.pairs, pool.rows[:, 0], pool.rows[:, 1], integral)


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


class _Pool:
    """Accepted nodes."""

    def __init__(self, rows: torch.Tensor, pairs: torch.Tensor) -> None:
        self.rows, self.pairs = rows, pairs

    def add(self, pairs: torch.Tensor, alpha: torch.Tensor, weight: torch.Tensor) -> None:
        self.rows = torch.cat([self.rows, torch.stack([alpha, weight], 1)])
        self.pairs = torch.cat([self.pairs, pairs])


@dataclass
class _Intervals:
    """Parts [a, b] of the update of single points, with values and slopes at two Gauss nodes."""

    point: torch.Tensor  # [I]
    a: torch.Tensor
    b: torch.Tensor
    at_a: torch.Tensor  # [I, K]
    at_b: torch.Tensor
    slope_1: torch.Tensor
    slope_2: torch.Tensor
    share: torch.Tensor  # [I], weight of the first node

    @property
    def width(self) -> torch.Tensor:
        return self.b - self.a

    @property
    def integral(self) -> torch.Tensor:
        share = self.share[:, None]
        return self.width[:, None] * (share * self.slope_1 + (1 - share) * self.slope_2)

    @property
    def errors(self) -> torch.Tensor:
        return (self.at_b - self.at_a - self.integral).abs()

    def pick(self, rows: torch.Tensor) -> _Intervals:
        return _Intervals(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def join(self, other: _Intervals) -> _Intervals:
        return _Intervals(
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


class _Refinement:
    """Splits intervals until every point meets its tolerance."""

    def __init__(
        self,
        segments: Measured,
        which: torch.Tensor,
        points: torch.Tensor,
        tolerance: torch.Tensor,
    ) -> None:
        self._segments, self._which = segments, which
        self._points, self._tolerance = points, tolerance
        self._noise = float(tolerance.min()) / ROUNDING
        self._most = MAX_INTERVALS.get(tolerance.dtype, 64)

    def run(self, before: torch.Tensor, after: torch.Tensor, pool: _Pool) -> torch.Tensor:
        """Add nodes of all points to the pool; return their integrals [n, K]."""
        every = torch.arange(len(self._points), device=before.device)
        zeros = before.new_zeros(len(every))
        whole = self._measured(every, zeros, zeros + 1, before, after, whole=True)
        open_, done = whole, whole.pick(torch.zeros(0, dtype=torch.int64))
        for round_ in range(MAX_ROUNDS):
            open_.fit(self._tolerance[open_.point] / 2)
            split, keep = self._too_large(open_.join(done))
            if len(split.point) == 0:
                break
            middle = (split.a + split.b) / 2
            place = split.kink() if round_ % 2 == 0 else middle
            usable = (place > split.a) & (place < split.b)
            done = keep.join(split.pick((~usable).nonzero().squeeze(1)))
            open_ = self._halves(split.pick(usable.nonzero().squeeze(1)), place[usable])
            if len(open_.point) == 0:
                break
        found = open_.join(done)
        offset = found.width * GAUSS_2
        for alpha, share in ((found.a + offset, found.share), (found.b - offset, 1 - found.share)):
            used = share > 0
            pool.add(found.point[used], alpha[used], (found.width * share)[used])
        return torch.zeros_like(before).index_add_(0, found.point, found.integral)

    def _too_large(self, all_: _Intervals) -> tuple[_Intervals, _Intervals]:
        """Separate the intervals to split: the largest errors of points above their tolerance."""
        error = all_.errors.amax(1)
        count = len(self._points)
        total = error.new_zeros(count).index_add_(0, all_.point, error)
        parts = error.new_zeros(count).index_add_(0, all_.point, torch.ones_like(error))
        allowed = (self._tolerance / parts.clamp(min=1) / 2).clamp(min=self._noise)
        open_ = (total > self._tolerance) & (parts < self._most)
        chosen = open_[all_.point] & (error > allowed[all_.point])
        return all_.pick(chosen.nonzero().squeeze(1)), all_.pick((~chosen).nonzero().squeeze(1))

    def _halves(self, split: _Intervals, place: torch.Tensor) -> _Intervals:
        which, points = self._which[split.point], self._points[split.point]
        at = self._segments.values_at(which, points, place)
        left = (split.point, split.a, place, split.at_a, at)
        right = (split.point, place, split.b, at, split.at_b)
        joined = (torch.cat(pair) for pair in zip(left, right, strict=True))
        return self._measured(*joined)

    def _measured(
        self,
        point: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        at_a: torch.Tensor,
        at_b: torch.Tensor,
        *,
        whole: bool = False,
    ) -> _Intervals:
        offset = (b - a) * GAUSS_2
        which, points = self._which[point], self._points[point]
        if whole:
            nodes = (GAUSS_2, 1 - GAUSS_2)
            slopes = [self._segments.slopes_of(which, points, alpha) for alpha in nodes]
        else:
            alpha = torch.cat([a + offset, b - offset])
            both = self._segments.slopes_at(which.repeat(2), points.repeat(2), alpha)
            slopes = list(both.chunk(2))
        return _Intervals(point, a, b, at_a, at_b, slopes[0], slopes[1], torch.full_like(a, 0.5))

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

A slope costs a fraction of the gradients of K > 1 outputs. So at the end the midpoint is tried
again, in every interval of two nodes and in neighbours taken together, and kept where its measured
error is within the interval's share of the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import torch

from coarlib.errors import HistoryError
from coarlib.path_kernel.intervals import GAUSS_2, Intervals

DEFAULT_TOLERANCE = {torch.float64: 2e-7, torch.float32: 3e-5}
ROUNDING = 32.0
"""A tolerance below this many units in the last place of f cannot be met and is raised to it."""

MAX_ROUNDS = 100
MAX_INTERVALS = {torch.float64: 512, torch.float32: 128}
"""Parts of one point's update (in float32 rounding leaves nothing to more of them); the residual
that is left then is reported."""

CROWDED = 8
"""So many times fewer parts, and the largest errors come first."""


def checked_tolerance(tolerance: float | None, dtype: torch.dtype) -> float:
    """Return the tolerance, by default that of ``dtype``.

    Raises
    ------
    HistoryError
        If it is negative or no number, or there is no quadrature in ``dtype``.
    """
    if dtype not in DEFAULT_TOLERANCE:
        raise HistoryError(
            f"the path kernel is computed in float32 or float64, not {dtype}; open the run with "
            "such a dtype"
        )
    if tolerance is None:
        return DEFAULT_TOLERANCE[dtype]
    if not (isinstance(tolerance, Real) and 0 <= tolerance < float("inf")):
        raise HistoryError(f"the tolerance must be a number of at least 0, not {tolerance!r}")
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
        refine = _Refinement(segments, which, points, self.allowed(before, after, share))
        found = refine.by_middles(refine.run(before, after))
        offset, share_1 = found.width * found.first, found.share
        alpha = torch.cat([found.a + offset, found.b - offset])
        weight = torch.cat([found.width * share_1, found.width * (1 - share_1)])
        used = weight > 0
        pair = found.point.repeat(2)
        return Nodes(pair[used], alpha[used], weight[used], refine.integral(found))

    def integral(
        self,
        segments: Measured,
        which: torch.Tensor,
        points: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
    ) -> torch.Tensor:
        """Integrate slopes alone, to the tolerance, ``[n, K]``; arguments as :meth:`nodes`."""
        refine = _Refinement(segments, which, points, self.allowed(before, after))
        return refine.integral(refine.run(before, after))


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

    def run(self, before: torch.Tensor, after: torch.Tensor) -> Intervals:
        """Return the parts of all points' updates, with two nodes each."""
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
            if not usable.any():
                return done
            open_ = self._halves(split.pick(usable.nonzero().squeeze(1)), place[usable])
        return open_.join(done)

    def integral(self, found: Intervals) -> torch.Tensor:
        """Add up the parts of each point, [n, K]."""
        total = found.at_a.new_zeros(len(self._points), found.at_a.shape[1])
        return total.index_add_(0, found.point, found.integral)

    def by_middles(self, found: Intervals) -> Intervals:
        """Take single nodes, and intervals two by two, where the tolerance allows and it saves."""
        if found.at_a.shape[1] == 1:
            return found
        two = ((found.share > 0) & (found.share < 1)).nonzero().squeeze(1)
        found = self._replaced(found, two, two)
        found = found.pick((found.point + found.a.double()).argsort())
        begins = torch.ones_like(found.point, dtype=torch.bool)
        begins[1:] = found.point[1:] != found.point[:-1]
        every = torch.arange(len(begins), device=begins.device)
        odd = (every - torch.where(begins, every, 0).cummax(0).values) % 2 == 1
        right = odd.nonzero().squeeze(1)
        return self._replaced(found, right - 1, right)

    def _replaced(self, found: Intervals, left: torch.Tensor, right: torch.Tensor) -> Intervals:
        """Replace intervals ``left`` to ``right`` [C] by the midpoint rule where it will do."""
        if len(left) == 0:
            return found
        point, a, b = found.point[left], found.a[left], found.b[right]
        which, points = self._which[point], self._points[point]
        slope = self._segments.slopes_at(which, points, (a + b) / 2)
        ends = found.at_a[left], found.at_b[right]
        tried = Intervals(
            point, a, b, *ends, slope, slope, torch.ones_like(a), torch.full_like(a, 0.5)
        )
        (now, total, parts), later = self._errors(found), tried.errors.amax(1)
        before = torch.where(left == right, now[left], now[left] + now[right])
        allowed = self._tolerance / parts.clamp(min=1) / 2
        fine = later <= torch.maximum(before, allowed[point])
        total.index_add_(0, point[fine], (later - before)[fine])
        fine &= (total <= self._tolerance)[point]
        kept = torch.ones_like(found.point, dtype=torch.bool)
        kept[left[fine]] = kept[right[fine]] = False
        rows = (part.nonzero().squeeze(1) for part in (kept, fine))
        return found.pick(next(rows)).join(tried.pick(next(rows)))

    def _errors(self, found: Intervals) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Largest error of each interval [I]; their sum and number at each point [n]."""
        error = found.errors.amax(1)
        zeros = error.new_zeros(len(self._points))
        total = zeros.index_add(0, found.point, error)
        return error, total, zeros.index_add(0, found.point, torch.ones_like(error))

    def _too_large(self, all_: Intervals) -> tuple[Intervals, Intervals]:
        """Separate the intervals to split: the largest errors of points above their tolerance."""
        error, total, parts = self._errors(all_)
        allowed = (self._tolerance / parts.clamp(min=1) / 2).clamp(min=self._noise)
        # Splits are scarce where there are many parts: the largest errors come first.
        mean = total / parts.clamp(min=1)
        allowed = torch.where(parts > self._most / CROWDED, torch.maximum(allowed, mean), allowed)
        open_ = (total > self._tolerance) & (parts < self._most)
        chosen = open_[all_.point] & (error > allowed[all_.point])
        return all_.pick(chosen.nonzero().squeeze(1)), all_.pick((~chosen).nonzero().squeeze(1))

    def _halves(self, split: Intervals, place: torch.Tensor) -> Intervals:
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
    ) -> Intervals:
        offset = (b - a) * GAUSS_2
        which, points = self._which[point], self._points[point]
        if whole:
            nodes = (GAUSS_2, 1 - GAUSS_2)
            slopes = [self._segments.slopes_of(which, points, alpha) for alpha in nodes]
        else:
            alpha = torch.cat([a + offset, b - offset])
            both = self._segments.slopes_at(which.repeat(2), points.repeat(2), alpha)
            slopes = list(both.chunk(2))
        share, first = torch.full_like(a, 0.5), torch.full_like(a, GAUSS_2)
        return Intervals(point, a, b, at_a, at_b, slopes[0], slopes[1], share, first)

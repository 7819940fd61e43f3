"""Contributions by the adjoint recurrence, or forward in time.

With the coefficients of :mod:`coarlib.history.optimizers` and Φ_s the integrated test gradient,
f_(s+1) - f_s = -⟨Φ_s, through_s b_s + direct_s u_s + shrink_s θ_s⟩. Summed over s, the gradient u_t
has the coefficient -Z_t with

    Z_t = direct_t Φ_t + take_t Ψ_t,        Ψ_t = through_t Φ_t + keep_(t+1) Ψ_(t+1),

so one sweep backwards in time costs one inner product a (query, sample, step) and keeps Ψ only
(n·K·P numbers, whatever the number of samples). A contribution is then counted at the step at which
the gradient was *taken*. Forwards in time, with a momentum buffer a sample, it is counted at the
steps in which it *acted*. Totals over steps are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from coarlib.history.parameters import Tensors
from coarlib.history.sources import Sources
from coarlib.history.walk import Update, Walk
from coarlib.path_kernel.accumulate import Accumulators, Breakdown
from coarlib.path_kernel.features import Feature, Features


@dataclass
class Sweep:
    """Explains one tile of test points.

    Attributes
    ----------
    walk, features, sources, breakdown
        Of the explanation.
    advance : callable
        Called after every update.
    """

    walk: Walk
    features: Features
    sources: Sources
    breakdown: Breakdown
    advance: Callable[[], None]

    def adjoint(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the rows of the tile ``points``, contributions counted where they were taken."""
        self.features.begin(points)
        ledger = None
        psi: Tensors = {}
        step: Update | None = None
        for number in reversed(self.walk.numbers):
            later, step = step, self.walk.update(number)
            feature = self.features.of(step)
            phi = {name: values.flatten(2).flatten(0, 1) for name, values in feature.phi.items()}
            if ledger is None:
                ledger = _Ledger(self.breakdown, feature, self.features)
                psi = {name: torch.zeros_like(values) for name, values in phi.items()}
            ledger.step(step, feature, phi)
            self._pull(psi, phi, step, later)
            for entering in self.sources.of(step):
                query, gradient = _meet(psi, phi, step, entering.gradient)
                ledger.sums.add(entering.source, number, query, gradient, entering.samples)
            self.advance()
        prior = self.walk.prior_momentum()
        if ledger is not None and step is not None and prior is not None:
            kept = {n: (step.coefficients[n].keep * v).reshape(1, -1) for n, v in prior.items()}
            ledger.sums.add("prior_momentum", step.number, psi, kept)
        return self._rows(ledger, points)

    @staticmethod
    def _pull(psi: Tensors, phi: Tensors, step: Update, later: Update | None) -> None:
        """Ψ_t = through_t Φ_t + keep_(t+1) Ψ_(t+1), in place."""
        for name, state in psi.items():
            if later is not None and later.coefficients[name].keep != 1.0:
                state.mul_(later.coefficients[name].keep)
            through = step.coefficients[name].through
            if isinstance(through, torch.Tensor):
                state.addcmul_(phi[name], through.reshape(1, -1))
            elif through:
                state.add_(phi[name], alpha=through)

    def forward(self, points: torch.Tensor, sample_tile: int) -> dict[str, torch.Tensor]:
        """Return the rows of the tile ``points``, contributions counted where they acted.

        Keeps a momentum buffer for each of at most ``sample_tile`` samples and goes over the
        history once for each such group of samples.
        """
        self.features.begin(points)
        by_sample = self.breakdown.by_sample
        tiles: list[np.ndarray | None] = [None]
        if by_sample:
            numbers = np.arange(self.breakdown.num_samples)
            tiles = [numbers[b : b + sample_tile] for b in range(0, len(numbers), sample_tile)]
        ledger = None
        for index, tile in enumerate(tiles):
            buffers = _Buffers(self.walk, tile)
            for number in self.walk.numbers:
                step = self.walk.update(number)
                feature = self.features.of(step)
                phi = {n: values.flatten(2).flatten(0, 1) for n, values in feature.phi.items()}
                if ledger is None:
                    ledger = _Ledger(self.breakdown, feature, self.features)
                if index == 0:
                    ledger.step(step, feature, phi)
                buffers.advance(step, self.sources, with_others=index == 0)
                buffers.read(step, phi, ledger.sums)
                self.advance()
        return self._rows(ledger, points)

    def _rows(self, ledger: _Ledger | None, points: torch.Tensor) -> dict[str, torch.Tensor]:
        walk = self.walk
        first = self.features.values(walk.history.first, walk.theta(walk.history.first))
        last = self.features.values(walk.history.last, walk.theta(walk.history.last))
        initial, final = self.features.at_ends(walk)
        beyond = ((final - initial) - (last - first)).double()
        zero = torch.zeros_like(beyond)
        apart = (beyond, zero) if walk.history.settings.is_window else (zero, beyond)
        found = {"initial": initial, "final": final, "outside": apart[0], "rounding": apart[1]}
        if ledger is None:
            empty = Accumulators(self.breakdown, (len(points), first.shape[1]), first).rows()
            return {**found, **empty, **dict.fromkeys(CHECKS, zero)}
        return {**found, **ledger.sums.rows(), **ledger.checks()}


CHECKS = ("quadrature_residual", "untracked", "update_residual", "largest_step_residual")


def _meet(psi: Tensors, phi: Tensors, step: Update, gradient: Tensors) -> tuple[Tensors, Tensors]:
    """Return a query and a gradient whose inner product is ⟨Z_t, gradient⟩, copying little."""
    query, scaled = {}, {}
    for name, values in gradient.items():
        own = step.coefficients[name]
        if own.direct:
            query[name] = phi[name] * own.direct + psi[name] * own.take
            scaled[name] = values
        else:
            query[name] = psi[name]
            scaled[name] = values if own.take == 1.0 else values * own.take
    return {**psi, **query}, scaled


class _Ledger:
    """Accumulators of a tile, and the checks that go with every update."""

    def __init__(self, breakdown: Breakdown, feature: Feature, features: Features) -> None:
        shape = feature.change.shape
        self.sums = Accumulators(breakdown, (shape[0], shape[1]), feature.change)
        zero = torch.zeros_like(feature.change).double()
        self._quadrature, self._largest = zero.clone(), zero.clone()
        self._all, self._tracked = zero.clone(), zero.clone()

    def step(self, step: Update, feature: Feature, phi: Tensors) -> None:
        """Note an update's residual and its decoupled weight decay."""
        residual = (feature.change - feature.integral).double()
        self._quadrature += residual
        self._largest = torch.maximum(self._largest, residual.abs())
        self._all += feature.integral.double()
        whole = len(phi) == len(step.theta)
        moved = feature.integral if whole else _inner(phi, step).view(feature.integral.shape)
        self._tracked += moved.double()
        shrunk = {
            name: (step.theta[name] * own.shrink).reshape(1, -1)
            for name, own in step.coefficients.items()
            if own.shrink
        }
        self.sums.add("weight_decay", step.number, phi, shrunk)

    def checks(self) -> dict[str, torch.Tensor]:
        """Return what the parts do not explain, float64 [n, K] each."""
        explained = torch.stack(list(self.sums.totals.values())).sum(0).view(self._all.shape)
        values = (
            self._quadrature,
            self._all - self._tracked,
            self._tracked - explained,
            self._largest,
        )
        return dict(zip(CHECKS, values, strict=True))


def _inner(phi: Tensors, step: Update) -> torch.Tensor:
    """⟨Φ, Δ⟩ over the tracked tensors, [n·K]."""
    parts = [
        values @ (step.theta_next[name] - step.theta[name]).reshape(-1)
        for name, values in phi.items()
    ]
    return torch.stack(parts).sum(0)


class _Buffers:
    """Momentum buffers by source, and by sample where asked for."""

    def __init__(self, walk: Walk, samples: np.ndarray | None) -> None:
        self._samples = samples
        self._momentum: dict[str, Tensors] = {}
        self._now: dict[str, Tensors] = {}
        prior = walk.prior_momentum()
        if prior is not None and (samples is None or samples[0] == 0):
            self._momentum["prior_momentum"] = {n: v.reshape(1, -1) for n, v in prior.items()}

    def advance(self, step: Update, sources: Sources, with_others: bool) -> None:
        """Let the gradients of an update enter the buffers."""
        for buffers in self._momentum.values():
            for name in buffers:
                buffers[name] = buffers[name] * step.coefficients[name].keep
        self._now = {}
        for entering in sources.of(step, self._samples):
            self._enter(step, entering.source, entering.gradient, entering.samples)
        if self._samples is not None and with_others:
            for entering in sources.without_data(step):
                self._enter(step, entering.source, entering.gradient, entering.samples)

    def _enter(
        self, step: Update, source: str, gradient: Tensors, samples: np.ndarray | None
    ) -> None:
        buffers = self._momentum.setdefault(source, {})
        now = self._now.setdefault(source, {})
        count = 1 if samples is None or self._samples is None else len(self._samples)
        for name, values in gradient.items():
            if name not in buffers:
                buffers[name] = values.new_zeros(count, values.shape[1])
            rows = torch.zeros(len(values), dtype=torch.int64)
            if samples is not None and self._samples is not None:
                rows = torch.from_numpy(np.searchsorted(self._samples, samples))
            rows = rows.to(values.device)
            own = step.coefficients[name]
            buffers[name].index_add_(0, rows, values, alpha=own.take)
            if own.direct:
                if name not in now:
                    now[name] = torch.zeros_like(buffers[name])
                now[name].index_add_(0, rows, values, alpha=own.direct)

    def read(self, step: Update, phi: Tensors, sums: Accumulators) -> None:
        """Add what the buffers do in this update."""
        through = {}
        for name, values in phi.items():
            factor = step.coefficients[name].through
            flat = factor.reshape(1, -1) if isinstance(factor, torch.Tensor) else factor
            through[name] = values * flat
        for source, buffers in self._momentum.items():
            numbers = self._samples if source == "data" else None
            sums.add(source, step.number, through, buffers, numbers)
        for source, now in self._now.items():
            numbers = self._samples if source == "data" else None
            sums.add(source, step.number, phi, now, numbers)

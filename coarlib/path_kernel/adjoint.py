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

from coarlib.history.factors import Full, Gradients
from coarlib.history.parameters import Tensors
from coarlib.history.sources import Entering, Sources
from coarlib.history.walk import Block, Update, Walk
from coarlib.path_kernel.accumulate import Accumulators, Breakdown
from coarlib.path_kernel.features import Feature, Features


@dataclass
class Sweep:
    """Explains one tile of test points.

    Attributes
    ----------
    walk, features, sources, breakdown
        Of the explanation.
    at_once : int
        How many updates to compute together.
    advance : callable
        Called after some updates, with how many.
    """

    walk: Walk
    features: Features
    sources: Sources
    breakdown: Breakdown
    at_once: int
    advance: Callable[[int], None]

    def _blocks(self) -> list[range]:
        """Return the updates in groups; states that are replayed together lie in one."""
        every, numbers = self.walk.history.settings.every, self.walk.numbers
        size = self.at_once // every * every or self.at_once
        found = []
        for begin in range(numbers.start, numbers.stop, max(size, every)):
            end = min(begin + max(size, every), numbers.stop)
            found += [range(b, min(b + size, end)) for b in range(begin, end, size)]
        return found

    def adjoint(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the rows of the tile ``points``, contributions counted where they were taken."""
        self.features.begin(points)
        ledger: _Ledger | None = None
        psi: Tensors = {}
        later: Update | None = None
        for numbers in reversed(self._blocks()):
            whole = self.walk.block(numbers)
            parts = self.features.parts(whole)[::-1]
            features, sources = self.features.of(whole, parts), self.sources.of_parts(whole, parts)
            for part, feature, entering in zip(parts, features, sources, strict=True):
                block, psis = whole.part(part), feature.phi
                ledger = ledger or _Ledger(self.breakdown, feature)
                ledger.note(block, feature)
                direct = any(own.direct for u in block.updates for own in u.coefficients.values())
                phi = {n: v.clone() for n, v in psis.items()} if direct else {}
                self._pull(psis, psi, block, later)
                for own in entering:
                    query, gradient = _meet(psis, phi, block, own)
                    at = block.numbers[own.updates]
                    ledger.sums.add(own.source, at, query, gradient, own.samples)
                psi = {name: values[0] for name, values in psis.items()}
                later = block.updates[0]
                self.advance(len(block))
        prior = self.walk.prior_momentum()
        if ledger is not None and later is not None and prior is not None:
            kept = {n: later.coefficients[n].keep * v for n, v in prior.items()}
            full: dict[str, Gradients] = {n: Full(v.reshape(1, 1, -1)) for n, v in kept.items()}
            query = {name: values[None] for name, values in psi.items()}
            ledger.sums.add("prior_momentum", [later.number], query, full)
        return self._rows(ledger, points)

    @staticmethod
    def _pull(phi: Tensors, psi: Tensors, block: Block, later: Update | None) -> None:
        """Replace Φ by Ψ_t = through_t Φ_t + keep_(t+1) Ψ_(t+1); ``psi`` is that of ``later``."""
        for name, values in phi.items():
            after = psi.get(name)
            keep = None if later is None else later.coefficients[name].keep
            for place in reversed(range(len(block))):
                own, state = block.updates[place].coefficients[name], values[place]
                if isinstance(own.through, torch.Tensor):
                    state.mul_(own.through.reshape(1, -1))
                elif own.through != 1.0:
                    state.mul_(own.through)
                if after is not None and keep is not None:
                    state.add_(after, alpha=keep)
                after, keep = state, own.keep

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
        ledger: _Ledger | None = None
        for index, tile in enumerate(tiles):
            buffers = _Buffers(self.walk, tile)
            for some in self._blocks():
                whole = self.walk.block(some)
                parts = self.features.parts(whole)
                for part, feature in zip(parts, self.features.of(whole, parts), strict=True):
                    block = whole.part(part)
                    ledger = ledger or _Ledger(self.breakdown, feature)
                    if index == 0:
                        ledger.note(block, feature)
                    for place, step in enumerate(block.updates):
                        own = block.part(slice(place, place + 1))
                        buffers.advance(own, self.sources, with_others=index == 0)
                        phi = {name: values[place] for name, values in feature.phi.items()}
                        buffers.read(step, phi, ledger.sums)
                    self.advance(len(block))
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


def _meet(
    psi: Tensors, phi: Tensors, block: Block, entering: Entering
) -> tuple[Tensors, dict[str, Gradients]]:
    """Return queries and gradients whose inner products are ⟨Z_t, gradient⟩, copying little."""
    query = {name: values[entering.updates] for name, values in psi.items()}
    scaled: dict[str, Gradients] = {}
    for name, gradient in entering.gradient.items():
        own = [update.coefficients[name] for update in block.updates[entering.updates]]
        take, like = [c.take for c in own], query[name]
        if any(c.direct for c in own):
            direct = like.new_tensor([c.direct for c in own])[:, None, None]
            query[name] = query[name] * like.new_tensor(take)[:, None, None]
            query[name] += phi[name][entering.updates] * direct
            scaled[name] = gradient
        else:
            whole = set(take) == {1.0}
            scaled[name] = gradient if whole else gradient.scaled(like.new_tensor(take))
    return query, scaled


class _Ledger:
    """Accumulators of a tile, and the checks that go with every update."""

    def __init__(self, breakdown: Breakdown, feature: Feature) -> None:
        like = feature.change[0]
        self.sums = Accumulators(breakdown, (like.shape[0], like.shape[1]), like)
        zero = torch.zeros_like(like).double()
        self._quadrature, self._largest = zero.clone(), zero.clone()
        self._all, self._tracked = zero.clone(), zero.clone()

    def note(self, block: Block, feature: Feature) -> None:
        """Note the updates' residuals and their decoupled weight decay."""
        residual = (feature.change - feature.integral).double()
        self._quadrature += residual.sum(0)
        self._largest = torch.maximum(self._largest, residual.abs().amax(0))
        integral = feature.integral.double()
        self._all += integral.sum(0)
        whole = len(feature.phi) == len(block.theta)
        moved = integral if whole else _inner(feature.phi, block).view_as(integral).double()
        self._tracked += moved.sum(0)
        shrunk: dict[str, Gradients] = {}
        for name in feature.phi:
            shrinks = [update.coefficients[name].shrink for update in block.updates]
            if any(shrinks):
                shrunk[name] = Full(block.theta[name].flatten(1)[:, None]).scaled(
                    block.theta[name].new_tensor(shrinks)
                )
        self.sums.add("weight_decay", block.numbers, feature.phi, shrunk)

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


def _inner(phi: Tensors, block: Block) -> torch.Tensor:
    """⟨Φ, Δ⟩ over the tracked tensors, [S, n·K]."""
    parts = [values @ block.delta[name].flatten(1)[..., None] for name, values in phi.items()]
    return torch.stack(parts).sum(0).squeeze(2)


class _Buffers:
    """Momentum buffers by source, and by sample where asked for."""

    def __init__(self, walk: Walk, samples: np.ndarray | None) -> None:
        self._samples = samples
        self._momentum: dict[str, Tensors] = {}
        self._now: dict[str, Tensors] = {}
        prior = walk.prior_momentum()
        if prior is not None and (samples is None or samples[0] == 0):
            self._momentum["prior_momentum"] = {n: v.reshape(1, -1) for n, v in prior.items()}

    def advance(self, block: Block, sources: Sources, with_others: bool) -> None:
        """Let the gradients of one update enter the buffers."""
        (step,) = block.updates
        for buffers in self._momentum.values():
            for name in buffers:
                buffers[name] = buffers[name] * step.coefficients[name].keep
        self._now = {}
        for entering in sources.of(block, self._samples):
            self._enter(step, entering)
        if self._samples is not None and with_others:
            for entering in sources.without_data(block):
                self._enter(step, entering)

    def _enter(self, step: Update, entering: Entering) -> None:
        buffers = self._momentum.setdefault(entering.source, {})
        now = self._now.setdefault(entering.source, {})
        samples = None if entering.samples is None else entering.samples[0]
        count = 1 if samples is None or self._samples is None else len(self._samples)
        for name, gradients in entering.gradient.items():
            values = gradients.flat()[0]
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
            through[name] = (values * flat)[None]
        now = {name: values[None] for name, values in phi.items()}
        own = None if self._samples is None else self._samples[None]
        for query, sources in ((through, self._momentum), (now, self._now)):
            for source, buffers in sources.items():
                numbers = own if source == "data" else None
                full: dict[str, Gradients] = {n: Full(v[None]) for n, v in buffers.items()}
                sums.add(source, [step.number], query, full, numbers)

"""Outputs as observations of the linear model: rows share their masks, the others have their own.

For each target the prior of its weights is independent, N(m, diag d), and so is the noise of each
kind of observation; means are fitted freely. The posterior is formed over features (primal) or over
observations (dual), whichever is smaller, for blocks of targets at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.gradient_passes import Trials
from coarlib.regression.bayes.factors import Marginals

__all__ = ["Observations", "Posterior"]

# Numbers that the matrices of a block of targets hold: few for a processor's cache (large ones are
# also freed and allocated anew at every step), many for a device that waits for launches.
BLOCK_NUMBERS = {"cpu": 2**20, "device": 2**25}
MOST_KEPT = 2**26  # numbers of masks that are not drawn again


@dataclass(frozen=True)
class Posterior:
    """What observations make of a prior.

    Attributes
    ----------
    weights : Marginals
    errors : float64 [kinds, T]
        Residual sums of squares.
    freedom : float64 [kinds, T]
        Observations less effective parameters, the free mean included.
    """

    weights: Marginals
    errors: torch.Tensor
    freedom: torch.Tensor


class Observations:
    """Outputs of rows (by their centred moments or masks) and of gradient passes.

    Parameters
    ----------
    rows : int
        n.
    masks : float64 [n, N] or None
        Centred masks of the rows, for the dual form.
    gram : float64 [N, N] or None
        X'X of the centred masks, for the primal form.
    cross : float64 [N, T]
        X'y.
    square : float64 [T]
        y'y of the centred outputs.
    outputs : float64 [n, T] or None
        Centred, for the dual form.
    own : list of Trials
        Gradient passes, trials: kinds of outputs under masks of their own, unscaled.
    scale : float64 [T]
        What outputs were divided by.
    """

    def __init__(
        self,
        rows: int,
        cross: torch.Tensor,
        square: torch.Tensor,
        *,
        gram: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        outputs: torch.Tensor | None = None,
        own: Sequence[Trials] = (),
        scale: NDArray[np.float64],
    ) -> None:
        self.rows, self.cross, self.square = rows, cross, square
        self.gram, self.masks, self.outputs = gram, masks, outputs
        self.own, self.scale = own, scale
        self.counts = [rows, *(len(kind.passes) for kind in own)]
        self._drawn: dict[int, torch.Tensor] = {}

    @property
    def num_features(self) -> int:
        """N."""
        return len(self.cross)

    @property
    def num_targets(self) -> int:
        """T."""
        return self.cross.shape[1]

    def _blocks(self) -> Iterator[slice]:
        side = self.num_features if self.gram is not None else sum(self.counts)
        numbers = side**2 + sum(self.counts) * self.num_features
        most = BLOCK_NUMBERS["cpu" if self.cross.device.type == "cpu" else "device"]
        size = max(1, most // max(numbers, 1))
        for start in range(0, self.num_targets, size):
            yield slice(start, min(start + size, self.num_targets))

    def _owned(self, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks [t, K, N] and outputs [t, K] of all that has its own; each kind is centred."""
        masks, device = self._masks(block), self.cross.device
        z = torch.empty_like(masks, dtype=torch.float64)
        y = z.new_empty(z.shape[:2])
        start = 0
        for kind in self.own:
            part = slice(start, start := start + len(kind.passes))
            outputs = torch.from_numpy(kind.outputs[:, block] / self.scale[block]).T.to(device)
            z[:, part] = masks[:, part] - masks[:, part].mean(1, keepdim=True, dtype=torch.float64)
            y[:, part] = outputs - outputs.mean(1, keepdim=True)
        return z, y

    def _masks(self, block: slice) -> torch.Tensor:
        """Draw masks, float32 [t, K, N], or take those that were drawn before."""
        if block.start in self._drawn:
            return self._drawn[block.start]
        wide, device = self.num_features, self.cross.device
        found = torch.zeros(block.stop - block.start, 0, wide, device=device)
        if self.own:
            drawn = [torch.from_numpy(kind.masks(block, wide)) for kind in self.own]
            found = torch.cat(drawn, 1).to(device)
        if sum(self.counts[1:]) * wide * self.num_targets <= MOST_KEPT:
            self._drawn[block.start] = found
        return found

    def trial_level(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean output of the last kind, [T], less what weights [N, T] make of its masks."""
        kind = self.own[-1]
        found = kind.outputs.mean(0, dtype=np.float64)
        for block in self._blocks():
            masks = self._masks(block)[:, -len(kind.passes) :].mean(1, dtype=torch.float64)
            found[block] -= np.einsum("tn,nt->t", masks.cpu().numpy(), weights[:, block])
        return found

    def _each(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise variances [kinds, t] for each observation that has its own masks, [t, K]."""
        counts = torch.tensor(self.counts[1:], device=noise.device)
        return noise[1:].T.repeat_interleave(counts, 1)

    def posterior(self, prior: Marginals, noise: torch.Tensor) -> Posterior:
        """Return the posterior of all weights.

        Parameters
        ----------
        prior : Marginals
        noise : float64 [kinds, T]
            Variances.
        """
        shape = self.cross.shape
        mean, variance = self.cross.new_empty(shape), self.cross.new_empty(shape)
        errors, freedom = self.cross.new_zeros(2, len(self.counts), shape[1])
        solve = self._dual if self.gram is None else self._primal
        for block in self._blocks():
            found = solve(
                block, prior.mean[:, block].T, prior.variance[:, block].T, noise[:, block]
            )
            mean[:, block], variance[:, block] = found[0].T, found[1].T
            errors[:, block], freedom[:, block] = found[2], found[3]
        smallest = 1e-9 * prior.variance
        return Posterior(Marginals(mean, torch.maximum(variance, smallest)), errors, freedom)

    def draws(self, prior: Marginals, noise: torch.Tensor, count: int) -> torch.Tensor:
        """Draw weights less their mean from the posterior, all weights of a target together.

        Parameters
        ----------
        prior, noise
            As of :meth:`posterior`.
        count : int
            K.

        Returns
        -------
        float16 [K, N, T]
            In units of each weight's posterior standard deviation.
        """
        generator = torch.Generator(self.cross.device).manual_seed(0)
        found = torch.empty(count, *self.cross.shape, dtype=torch.float16, device=self.cross.device)
        solve = self._drawn_dual if self.gram is None else self._drawn_primal
        for block in self._blocks():
            drawn, sd = solve(block, prior.variance[:, block].T, noise[:, block], count, generator)
            found[:, :, block] = (drawn / sd[:, :, None].clamp_min(1e-300)).permute(2, 1, 0).half()
        return found

    def _drawn_dual(
        self,
        block: slice,
        d: torch.Tensor,
        noise: torch.Tensor,
        count: int,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws from the prior, corrected by what outputs drawn with them say (Matheron's rule)."""
        z, _, scaled, each, factor = self._system(block, d, noise)
        weights = d.sqrt()[:, :, None] * _normal(*d.shape, count, like=d, generator=generator)
        outputs = each.sqrt()[:, :, None] * _normal(*each.shape, count, like=d, generator=generator)
        solved = torch.cholesky_solve(z @ weights + outputs, factor)
        half = torch.linalg.solve_triangular(factor, scaled, upper=False)
        variance = (d - half.square().sum(1)).clamp_min(1e-9 * d)
        return weights - scaled.transpose(1, 2) @ solved, variance.sqrt()

    def _drawn_primal(
        self,
        block: slice,
        d: torch.Tensor,
        noise: torch.Tensor,
        count: int,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        factor = torch.linalg.cholesky(self._precision(self._owned(block)[0], d, noise))
        drawn = torch.linalg.solve_triangular(
            factor.transpose(1, 2),
            _normal(*d.shape, count, like=d, generator=generator),
            upper=True,
        )
        variance = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2) * d
        return d.sqrt()[:, :, None] * drawn, variance.sqrt()

    def _system(
        self, block: slice, d: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Masks z, outputs y, z d, noise variances, and the Cholesky factor of z d z' + noise."""
        z, y = self._owned(block)
        if self.masks is not None and self.outputs is not None:
            z = torch.cat([self.masks.expand(len(z), -1, -1), z], 1)
            y = torch.cat([self.outputs[:, block].T, y], 1)
        scaled = z * d[:, None, :]
        matrix = scaled @ z.transpose(1, 2)
        each = torch.cat([noise[0][:, None].expand(-1, self.rows), self._each(noise)], 1)
        matrix.diagonal(dim1=1, dim2=2).add_(each)
        return z, y, scaled, each, torch.linalg.cholesky(matrix)

    def _precision(self, z: torch.Tensor, d: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Posterior precision in units of the prior's, [t, N, N]; ``z`` as of ``_owned``."""
        gram = self.cross.new_zeros(0) if self.gram is None else self.gram
        root = d.sqrt()
        own = z.transpose(1, 2) @ (z / self._each(noise)[:, :, None])
        matrix = gram / noise[0][:, None, None] + own
        matrix = matrix * root[:, :, None] * root[:, None, :]
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        return matrix

    def _dual(
        self, block: slice, m: torch.Tensor, d: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        z, y, scaled, each, factor = self._system(block, d, noise)
        left = y - (z @ m[:, :, None])[:, :, 0]
        inverse = torch.cholesky_inverse(factor)
        solved = (inverse @ left[:, :, None])[:, :, 0]
        mean = m + (solved[:, None, :] @ scaled)[:, 0, :]
        variance = d - (scaled * (inverse @ scaled)).sum(1)
        residual = each * solved
        leverage = 1 - each * inverse.diagonal(dim1=1, dim2=2)
        errors = torch.stack([x.square().sum(1) for x in residual.split(self.counts, 1)])
        used = torch.stack([x.sum(1) for x in leverage.split(self.counts, 1)])
        return mean, variance, errors, self._freedom(used)

    def _primal(
        self, block: slice, m: torch.Tensor, d: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        z, y = self._owned(block)
        gram = self.cross.new_zeros(0) if self.gram is None else self.gram
        root = d.sqrt()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._precision(z, d, noise)))
        inverse = inverse * root[:, :, None] * root[:, None, :]
        c = self.cross[:, block].T
        left = (c - m @ gram) / noise[0][:, None]
        own = (y - (z @ m[:, :, None])[:, :, 0]) / self._each(noise)
        left = left + (own[:, None, :] @ z)[:, 0]
        mean = m + (inverse @ left[:, :, None])[:, :, 0]
        fitted = (mean @ gram * mean).sum(1)
        rows = (self.square[block] - 2 * (mean * c).sum(1) + fitted).clamp_min(0)
        others = (y - (z @ mean[:, :, None])[:, :, 0]).square()
        leverage = ((z @ inverse) * z).sum(2) / self._each(noise)
        used = (inverse * gram).sum((1, 2)) / noise[0]
        kinds = self.counts[1:]
        errors = [rows, *(x.sum(1) for x in others.split(kinds, 1))]
        freedom = [used, *(x.sum(1) for x in leverage.split(kinds, 1))]
        variance = inverse.diagonal(dim1=1, dim2=2)
        return mean, variance, torch.stack(errors), self._freedom(torch.stack(freedom))

    def _freedom(self, used: torch.Tensor) -> torch.Tensor:
        counts = used.new_tensor(self.counts)[:, None]
        return counts - used - (counts > 0).double()


def _normal(*shape: int, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)

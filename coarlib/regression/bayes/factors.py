"""The prior of the weights, learnt from all targets: which components matter, and to whom alike.

    w_jt = μ_jt + √v_j (λ_t'z_j + √ψ_t ε_jt),   z_j ~ N(0, I), ε_jt ~ N(0, 1):

one variance a component and, as in factor analysis, a few loadings a target, so that targets that
a component moves together tell of each other. Given independent observations of single weights
(a precision and a mean for each) the posterior is exact, and expectation and maximisation learn
v, λ and ψ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

__all__ = ["FactorPrior", "Marginals"]

LOADING_PRECISION = 3.0  # of the prior of loadings: few components cannot tell many of them
PRIOR_TARGETS = 1.0  # what all components say of one, in targets: none collapses to nothing
SMALLEST_SHARE = 1e-3  # of a target's prior variance that is its own
SMALLEST_VARIANCE = 1e-8  # of a component, relative to the mean


@dataclass(frozen=True)
class Marginals:
    """Means and variances of single weights, float64 [N, T] both."""

    mean: torch.Tensor
    variance: torch.Tensor


@dataclass(frozen=True)
class FactorPrior:
    """Variances v [N], loadings λ [T, q] and own variances ψ [T], float64."""

    variance: torch.Tensor
    loadings: torch.Tensor
    own: torch.Tensor

    @classmethod
    def start(cls, variance: torch.Tensor, targets: int, factors: int) -> FactorPrior:
        """Return a prior of given variances whose loadings are small and differ."""
        generator = torch.Generator().manual_seed(0)
        loadings = torch.randn(targets, factors, generator=generator, dtype=torch.float64)
        loadings *= 0.3 / max(factors, 1) ** 0.5
        loadings[:, :1] = 0.3  # what moves all targets alike
        own = torch.full((targets,), 0.5, dtype=torch.float64)
        return cls(variance, loadings.to(variance.device), own.to(variance.device))

    @property
    def total(self) -> torch.Tensor:
        """Prior variance of a target's weights in units of v, [T]."""
        return self.loadings.square().sum(1) + self.own

    def step(
        self, centre: torch.Tensor, precision: torch.Tensor, observed: torch.Tensor
    ) -> tuple[Marginals, FactorPrior]:
        """Return the posterior under observations, and the prior that an EM step makes of it.

        Parameters
        ----------
        centre : float64 [N, T]
            μ.
        precision, observed : float64 [N, T]
            Of independent observations of each weight; precision 0 = none.
        """
        v, loadings, own = self.variance[:, None], self.loadings, self.own
        q = loadings.shape[1]
        # In units of √v; ω is the precision of an observation as one of the factor part.
        rest = 1 / (v * precision * own + 1)  # what is not believed of the weight's own part
        weight = v * precision * rest
        x = (observed - centre) / v.sqrt()
        outer = (loadings[:, :, None] * loadings[:, None, :]).reshape(len(loadings), q * q)
        inner = (weight @ outer).reshape(-1, q, q)
        inner.diagonal(dim1=1, dim2=2).add_(1)
        spread = torch.linalg.inv(inner)
        score = (spread @ ((weight * x) @ loadings)[:, :, None])[:, :, 0]
        common = score @ loadings.T
        common_variance = spread.reshape(-1, q * q) @ outer.T
        second = spread + score[:, :, None] * score[:, None, :]
        normal = (weight.T @ second.reshape(-1, q * q)).reshape(-1, q, q)
        normal.diagonal(dim1=1, dim2=2).add_(LOADING_PRECISION)
        # Loadings are not known either: each weight is as uncertain as they leave it.
        unsure = torch.linalg.inv(normal)
        product = (score[:, :, None] * score[:, None, :]).reshape(-1, q * q)
        common_variance = common_variance + product @ unsure.reshape(-1, q * q).T
        share = own * weight  # of what the factors leave, this much is believed
        left = share * (x - common)
        mean = common + left
        variance = rest.square() * common_variance + own * rest  # more than 0, as 1 - share is not
        found = Marginals(centre + v.sqrt() * mean, v * variance)
        loadings = (unsure @ ((weight * x).T @ score)[:, :, None])[:, :, 0]
        own = (left.square() + share.square() * common_variance + own * rest).mean(0)
        own = (0.5 * (own + own.mean())).clamp_min(SMALLEST_SHARE)
        better = replace(self, loadings=loadings, own=own)
        second_moment = v[:, 0] * ((mean.square() + variance) / better.total).mean(1)
        many = len(loadings)
        changed = (many * second_moment + PRIOR_TARGETS * second_moment.mean()) / (
            many + PRIOR_TARGETS
        )
        return found, better._normalised(changed)

    def _normalised(self, variance: torch.Tensor) -> FactorPrior:
        """Return the same prior with a mean total of 1, and no variance that is nothing."""
        size = self.total.mean()
        variance = (variance * size).clamp_min(SMALLEST_VARIANCE * float(variance.mean() * size))
        return FactorPrior(variance, self.loadings / size.sqrt(), self.own / size)

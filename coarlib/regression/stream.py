"""Problems too large for any Gram matrix: products are formed by passes over the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, certificate, standardisation
from coarlib.regression.rows import RowSource

__all__ = ["StreamProblem", "lasso_gap"]


@dataclass(frozen=True)
class StreamProblem(Problem):
    """A problem that reads its rows again for every product: no M × M and no n × n matrix."""

    @classmethod
    def from_source(
        cls,
        moments: Moments,
        source: RowSource,
        positions: NDArray[np.int64],
        device: torch.device | str = "cpu",
    ) -> StreamProblem:
        """Build the problem from moments (X'X is not needed) and the rows themselves."""
        active, mean, scale = standardisation(moments)
        empty = torch.empty(0, dtype=torch.float64, device=device)
        return cls(moments, active, mean, scale, empty, source=source, positions=positions)

    def times_gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Return R W = Z'(ZW)/n by one pass, float64 [M, t]."""
        return self._product(weight, torch.float32)

    def exact_times_gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Return R W as above, in float64 throughout (a certificate is no better than this)."""
        return self._product(weight, torch.float64)

    def _product(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        total = torch.zeros_like(weight, dtype=torch.float64)
        narrow = weight.to(dtype)
        for z, _ in self.blocks(dtype):
            total += z.T @ (z @ narrow)
        return total / self.num_rows

    def eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Not available: there is no matrix to decompose."""
        raise RegressionError(
            "this solver needs a Gram matrix; conjugate_gradients and saga do without"
        )


def lasso_gap(
    problem: Problem, weight: torch.Tensor, lam: torch.Tensor, targets: slice
) -> NDArray[np.float64]:
    """Duality gap of lasso weights [M, t] at λ [t], relative to ½ yy, by one product with R.

    At λ = 0 no scaling of the residual is feasible unless the gradient vanishes, so the bound is
    then the whole explained part; least squares has better certificates.
    """
    c = problem.covariance(targets)
    gradient = c - problem.exact_times_gram(weight)
    yy = torch.as_tensor(problem.variance[targets], device=c.device)
    ry = yy - (weight * c).sum(0)
    rr = (ry - (weight * gradient).sum(0)).clamp_min(0)
    limit = lam / gradient.abs().amax(0).clamp_min(1e-300)
    # Clipped from both sides: weights that overshoot have y'r < 0.
    s = torch.where(rr > 0, ry / rr.clamp_min(1e-300), rr * 0).clamp(-limit, limit)
    gap = 0.5 * rr + lam * weight.abs().sum(0) - (s * ry - 0.5 * s.square() * rr)
    return certificate(gap.cpu().numpy(), problem.variance[targets])

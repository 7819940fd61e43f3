"""The dual form: fewer rows than features, and never an M × M matrix.

With Z the standardised masks, [n, M], the kernel K = ZZ'/n is n × n and has the positive
eigenvalues of R; R's eigenvectors are Z'u / √(n d). A ViT with 82,944 components and 5,000 rows
needs a kernel of 200 MB where R would take 55 GB. The masks are held in memory as booleans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, positive, standardisation
from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import finite_blocks

__all__ = ["DualProblem", "finite_masks"]

FEATURE_BLOCK = 4096
QUICK_PRODUCTS = 10**11


@dataclass(frozen=True)
class DualProblem(Problem):
    """A problem that keeps its masks instead of R.

    Attributes
    ----------
    masks : bool [n, N]
        The rows that the moments sum, in any order.
    """

    masks: NDArray[np.bool_]

    @classmethod
    def from_masks(
        cls, moments: Moments, masks: NDArray[np.bool_], device: torch.device | str = "cpu"
    ) -> DualProblem:
        """Build the problem from moments (X'X is not needed) and their masks."""
        active, mean, scale = standardisation(moments)
        empty = torch.empty(0, dtype=torch.float64, device=device)
        return cls(moments, active, mean, scale, empty, masks)

    def reweighted(self, size: NDArray[np.float64]) -> DualProblem:
        """Return the problem with feature j multiplied by ``size[j]``."""
        return replace(self, scale=self.scale / size)

    def _blocks(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[slice, torch.Tensor]]:
        """Iterate over blocks of standardised columns, [n, b]."""
        every = len(self.active) == self.moments.num_features
        for start in range(0, self.num_active, FEATURE_BLOCK):
            block = slice(start, min(start + FEATURE_BLOCK, self.num_active))
            columns = self.masks[:, block] if every else self.masks[:, self.active[block]]
            z = torch.from_numpy(np.ascontiguousarray(columns)).to(self.device).to(dtype)
            z -= torch.as_tensor(self.mean[block], device=self.device).to(dtype)
            z /= torch.as_tensor(self.scale[block], device=self.device).to(dtype)
            yield block, z

    def kernel(self) -> torch.Tensor:
        """Return K = ZZ'/n, float64 [n, n]."""
        n = self.num_rows
        total = torch.zeros(n, n, dtype=torch.float64, device=self.device)
        for _, z in self._blocks(self._kernel_dtype):
            total += z @ z.T
        return total / n

    @property
    def _kernel_dtype(self) -> torch.dtype:
        """Float64 where it is a matter of seconds."""
        small = self.num_rows**2 * self.num_active <= QUICK_PRODUCTS
        return torch.float64 if small else torch.float32

    def _times(self, weight: torch.Tensor) -> torch.Tensor:
        """Return Z W, float64 [n, t]."""
        total = weight.new_zeros(self.num_rows, weight.shape[1])
        for block, z in self._blocks():
            total += z @ weight[block]
        return total

    def times_gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Return R W = Z'(ZW)/n, float64 [M, t]."""
        fitted = self._times(weight)
        parts = [z.T @ fitted for _, z in self._blocks()]
        return torch.cat(parts) / self.num_rows

    def eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positive eigenvalues [K], ascending, and eigenvectors [M, K] of R."""
        values, left = torch.linalg.eigh(self.kernel())
        used = positive(values)
        used[0] = False  # centred rows span at most n - 1 dimensions
        if self._kernel_dtype == torch.float32:  # smaller eigenvalues than this are rounding
            used &= values > float(values[-1]) * 1e-7
        values, left = values[used], left[:, used]
        left = left / (self.num_rows * values).sqrt()
        vectors = torch.empty(self.num_active, len(values), dtype=torch.float64, device=self.device)
        for block, z in self._blocks():
            vectors[block] = z.T @ left
        return values, vectors

    def posterior(
        self, variance: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Posterior under independent priors (see :meth:`Problem.posterior`), by Woodbury.

        With D = diag(√τ): (nR + D⁻²)⁻¹ = D² - D² Z' (I + Z D² Z')⁻¹ Z D².
        """
        n, root = self.num_rows, variance.sqrt()
        inner = self.reweighted(root.cpu().numpy()).kernel() * n
        inner.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(inner)
        scaled = variance[:, None] * c * n
        fitted = self._times(scaled)
        solved = torch.cholesky_solve(fitted, factor)
        mean, marginal = scaled, variance.clone()
        for block, z in self._blocks():
            mean[block] -= variance[block, None] * (z.T @ solved)
            half = torch.linalg.solve_triangular(factor, z, upper=False)
            marginal[block] -= variance[block].square() * half.square().sum(0)
        return mean, marginal.clamp_min(0), 2 * float(factor.diagonal().log().sum())


def finite_masks(source: RowSource, positions: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Read the masks of rows whose outputs are all finite in float32, bool [n, N]."""
    return np.concatenate([masks for masks, _ in finite_blocks(source, positions)])

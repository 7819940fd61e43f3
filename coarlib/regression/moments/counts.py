"""Exact pair counts of boolean masks: columns packed into bits, AND, popcount; and column sums.

``counts[i, j]`` is the number of rows that keep both features, the (i, j) entry of X'X. On a
processor with AVX-512 VPOPCNTDQ this compiles to it and beats the float32 GEMM by about ten. What
is small goes through NumPy and torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.compiled import worth_compiling
from coarlib.regression.threads import torch_threads

__all__ = ["PairCounter", "column_sums", "int8_pairs"]

# What takes a second or less is not worth compiling for: up to so many products of a matrix
# product, or entries of a sum, come from NumPy and torch.
SMALL, _SMALL_SUM = 2**34, 2**22


class PairCounter:
    """Accumulates X'X over blocks of masks, exactly for up to 2^31 rows.

    Parameters
    ----------
    num_features : int
        N; the counts take 4 N² bytes.
    num_rows : int
        How many rows will come, where that is known: compiling pays from the first of many.
    """

    def __init__(self, num_features: int, num_rows: int = 0) -> None:
        self._counts = np.zeros((num_features, num_features), np.int32)
        self._products, self._done = num_rows * num_features**2, 0
        self._only_upper = False

    def add(self, masks: NDArray[np.bool_]) -> NDArray[np.uint64] | None:
        """Add the rows of ``masks``, bool [B, N]; return their packed columns if it took them."""
        rows, features = masks.shape
        if rows == 0 or features == 0:
            return None
        self._products = max(self._products, self._done + rows * features**2)
        if not worth_compiling(self._products, SMALL) and rows < 2**24:
            self._done += rows * features**2
            values = torch.from_numpy(np.ascontiguousarray(masks)).float()
            self._counts += (values.T @ values).numpy().astype(np.int32)  # exact below 2^24
            return None
        from coarlib.regression.moments.kernels import add_counts, pack

        with torch_threads():
            words = pack(np.ascontiguousarray(masks).view(np.uint8))
            add_counts(words, self._counts)
        self._only_upper = True
        return np.asarray(words)

    def total(self) -> NDArray[np.int32]:
        """Return the symmetric counts, int32 [N, N]; the diagonal is how often each was kept."""
        if self._only_upper:
            from coarlib.regression.moments.kernels import mirror

            with torch_threads():
                mirror(self._counts)
        return self._counts


def column_sums(values: torch.Tensor) -> torch.Tensor:
    """Return Σ and Σ² of each column of real [B, T], float64 [2, T] (float32 on MPS).

    NaN and inf come through.
    """
    if values.device.type == "cpu" and not worth_compiling(values.numel(), _SMALL_SUM):
        whole = values.numpy().astype(np.float64, copy=False)
        return torch.from_numpy(np.stack([whole.sum(0), np.einsum("ij,ij->j", whole, whole)]))
    if values.device.type == "cpu":  # torch's double reductions take as long as the products
        from coarlib.regression.moments.kernels import sums_of_columns

        with torch_threads():
            return torch.from_numpy(sums_of_columns(values.numpy()))
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    norms = torch.linalg.vector_norm(values, dim=0, dtype=wide)
    return torch.stack([values.sum(0, dtype=wide), norms.square()])


def int8_pairs(values: torch.Tensor) -> torch.Tensor:
    """X'X of bool [B, N] by int8 products, int32 [N, N]; exact, fast on tensor cores."""
    rows, features = values.shape
    # _int_mm wants more than 16 rows, and multiples of 8; with its second operand column-major it
    # reaches the rate of the tensor cores, many times that of two row-major operands.
    shape = max(24, -features % 8 + features), max(24, -rows % 8 + rows)
    if shape == (features, rows):
        transposed = values.T.contiguous().view(torch.int8)
    else:
        transposed = torch.zeros(shape, dtype=torch.int8, device=values.device)
        transposed[:features, :rows] = values.T
    return torch._int_mm(transposed, transposed.T)[:features, :features]

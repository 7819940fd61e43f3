"""Exact leave-one-out errors of ridge regression, for a whole grid of λ by one pass over the rows.

For a row with standardised mask z and residual e, the residual of the fit without that row is
``e / (1 - h)`` with the leverage ``h = 1/n + z'(R + λI)⁻¹z / n`` (the penalty nλ and the scaling
staying as they are): Allen's PRESS. With z rotated into R's eigenvectors, h is a weighted sum of
squares for every λ at once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.regression.problem import Problem, target_blocks
from coarlib.regression.solvers.ridge_path import RidgePath

__all__ = ["leave_one_out_errors"]


def leave_one_out_errors(path: RidgePath, lams: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared leave-one-out errors.

    Parameters
    ----------
    path : RidgePath
        Of a problem that knows its rows.
    lams : float64 [L]

    Returns
    -------
    float64 [L, T]
    """
    problem: Problem = path.problem
    n, d = problem.num_rows, path.values
    mean = torch.as_tensor(problem.moments.mean_output, device=d.device)
    inverse = 1 / (d + torch.as_tensor(lams, device=d.device)[:, None])  # [L, K]
    errors = np.zeros((len(lams), problem.num_targets))
    for z, outputs in problem.blocks():
        rotated = z.double() @ path.vectors  # [B, K]
        kept = 1 - 1 / n - (rotated.square() @ inverse.T) / n  # 1 - h, [B, L]
        y = torch.as_tensor(outputs.astype(np.float64), device=d.device) - mean
        for targets in target_blocks(problem.num_targets):
            c = path.rotated(targets)
            for index in range(len(lams)):
                residual = y[:, targets] - rotated @ (inverse[index][:, None] * c)
                left_out = residual / kept[:, index, None].clamp_min(1e-12)
                errors[index, targets] += left_out.square().sum(0).cpu().numpy()
    return errors / n

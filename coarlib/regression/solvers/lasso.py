"""Lasso and elastic net for all targets on the shared Gram matrix, with certified duality gaps.

The penalty is ``λ (ρ ‖w‖₁ + ½ (1 - ρ) ‖w‖²)`` on standardised weights, ρ = ``l1_ratio``: the
objective of scikit-learn's ``ElasticNet`` and of glmnet on standardised masks, so their λ compare.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution, certificate, target_blocks
from coarlib.regression.solvers.lasso_kernel import solve_paths
from coarlib.regression.threads import torch_threads

__all__ = ["largest_lambda", "solve_lasso", "validation_moments"]

NUM_LAMBDAS = 100
EPS = 1e-2
TOLERANCE = 1e-6
PATIENCE = 5
CHUNK = 4  # targets a thread takes at a time; paths differ in length
PATH_KEYS = ("gap", "nonzero", "validation_error", "sweeps")


def largest_lambda(
    problem: Problem, targets: slice = slice(None), l1_ratio: float = 1.0, positive: bool = False
) -> NDArray[np.float64]:
    """Smallest λ at which every weight of a target is zero, float64 [t]."""
    c = problem.covariance(targets)
    top = (c if positive else c.abs()).amax(0).clamp_min(0)
    return np.asarray(top.cpu().numpy() / l1_ratio)


def solve_lasso(
    problem: Problem,
    lam: float | NDArray[np.float64] | None = None,
    *,
    num_lambdas: int = NUM_LAMBDAS,
    eps: float = EPS,
    l1_ratio: float = 1.0,
    positive: bool = False,
    tol: float = TOLERANCE,
    validation: Moments | None = None,
    patience: int = PATIENCE,
    start: NDArray[np.float64] | None = None,
) -> Solution:
    """Fit the lasso (or elastic net) to every target.

    Parameters
    ----------
    problem : Problem
    lam : float or float64 [T], optional
        Fit at this λ. Without it, follow a path of ``num_lambdas`` from each target's largest
        useful λ down to ``eps`` times it and keep the λ with the smallest validation error.
    num_lambdas, eps
        The path.
    l1_ratio : float
        1 is the lasso, less is elastic net (0 is ridge and has its own solver).
    positive : bool
        Only weights ≥ 0.
    tol : float
        Largest duality gap, relative to half a target's variance.
    validation : Moments
        Rows that choose λ; needed for a path.
    patience : int
        A target's path stops when its validation error has been above its minimum for so many λ.
    start : float64 [N, T], optional
        Raw-unit weights to start from.

    Returns
    -------
    Solution
        ``path``: arrays [T, L] of λ, gap, non-zero weights, validation error and sweeps (NaN
        where the path had stopped).

    Raises
    ------
    RegressionError
        For options that make no sense, or a path without validation rows.
    """
    _check_lambda(lam, validation)
    _check_path(num_lambdas, eps, l1_ratio, tol)
    name = "lasso" if l1_ratio == 1 else f"elastic net (l1_ratio {l1_ratio:g})"
    how = "at the given λ" if lam is not None else f"path of {num_lambdas} λ, validation error"
    solution = Solution.empty(problem, f"{name} by coordinate descent, {how}")
    length = 1 if lam is not None else num_lambdas
    logs = np.full((problem.num_targets, len(PATH_KEYS), length), np.nan)
    lams = np.zeros((problem.num_targets, length))
    gram = np.ascontiguousarray(problem.gram.cpu().numpy())
    val = _Validation(problem, None if lam is not None else validation)
    for targets in target_blocks(problem.num_targets):
        c = np.ascontiguousarray(problem.covariance(targets).cpu().numpy().T)
        if lam is None:
            top = largest_lambda(problem, targets, l1_ratio, positive)
            lams[targets] = top[:, None] * np.geomspace(1, eps, num_lambdas)
        else:
            lams[targets] = np.broadcast_to(lam, problem.num_targets)[targets, None]
        weights = np.zeros_like(c)
        with torch_threads(), numba.parallel_chunksize(CHUNK):
            best = solve_paths(
                gram,
                c,
                problem.variance[targets],
                lams[targets],
                l1_ratio,
                positive,
                tol,
                _start(problem, start, targets, c.shape),
                val.gram,
                *val.targets(targets),
                patience,
                weights,
                logs[targets],
            )
        each = np.arange(len(best))
        solution.lam[targets] = lams[targets][each, best]
        yy, reached = problem.variance[targets], ~np.isnan(logs[targets, 3])
        gaps = np.where(reached, logs[targets, 0], 0.0).T  # [L, t]
        certified = np.stack([certificate(0.5 * yy * gap, yy) for gap in gaps])
        solution.gap[targets] = certified[best, each]
        solution.fill(problem, targets, torch.from_numpy(weights.T.copy()).to(problem.device))
    solution.iterations = int(np.nansum(logs[:, 3]))
    solution.path = {"lam": lams} | {key: logs[:, i] for i, key in enumerate(PATH_KEYS)}
    missed = int((solution.gap > tol).sum())
    solution.details |= {"tolerance": tol, "targets_above_tolerance": missed}
    if missed:
        solution.status += f"; {missed} targets stopped above the gap {tol:g}"
    return solution


def _check_lambda(lam: float | NDArray[np.float64] | None, validation: Moments | None) -> None:
    if lam is None and validation is None:
        raise RegressionError(
            "a lasso path needs held-out rows to choose λ (--data.num_val), or give one λ"
        )
    if lam is not None and not (np.isfinite(lam).all() and (np.asarray(lam) >= 0).all()):
        raise RegressionError(f"λ must be finite and not negative, not {lam}")


def _check_path(num_lambdas: int, eps: float, l1_ratio: float, tol: float) -> None:
    if not 0 < l1_ratio <= 1:
        raise RegressionError(f"l1_ratio must be in (0, 1], not {l1_ratio}; 0 is solver ridge")
    if num_lambdas < 1 or not 0 < eps < 1 or not tol > 0:
        raise RegressionError(
            "a path needs at least one λ, 0 < eps < 1 and a positive tolerance, not "
            f"k = {num_lambdas}, eps = {eps}, tolerance = {tol}"
        )


def _start(
    problem: Problem,
    start: NDArray[np.float64] | None,
    targets: slice,
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    if start is None:
        return np.zeros(shape)
    scaled = start[problem.active, targets] * problem.scale[:, None]
    return np.ascontiguousarray(scaled.T, dtype=np.float64)


def validation_moments(
    problem: Problem, moments: Moments
) -> tuple[NDArray[np.float64], Moments, NDArray[np.float64]]:
    """Second moments of other rows about the fit's means, in the fit's units.

    Returns
    -------
    gram : float64 [M, M]
        Σ zz' / n with z the masks standardised as in the fit.
    part : Moments
        The same moments about the fit's output means.
    shift : float64 [M]
        Mean of z.
    """
    if moments.pairs is None:
        raise RegressionError("choosing λ from moments needs X'X of the validation rows")
    n, active = moments.num_rows, problem.active
    mean, scale = problem.mean, problem.scale
    kept = moments.kept[active] / n
    gram = moments.pairs[np.ix_(active, active)] / n
    gram += np.outer(mean, mean) - np.outer(kept, mean) - np.outer(mean, kept)
    gram /= np.outer(scale, scale)
    return gram, moments.with_offset(problem.moments.mean_output), (kept - mean) / scale


class _Validation:
    """Validation moments in the form the kernel takes; empty without validation rows."""

    def __init__(self, problem: Problem, moments: Moments | None) -> None:
        self._problem, self._part = problem, None
        self.gram = np.zeros((0, 0), np.float32)
        if moments is not None:
            gram, self._part, _ = validation_moments(problem, moments)
            self.gram = gram.astype(np.float32)

    def targets(self, targets: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return c' [t, M] and yy [t] of some targets."""
        width = len(range(*targets.indices(self._problem.num_targets)))
        if self._part is None:
            return np.zeros((width, 0)), np.zeros(width)
        p, part = self._problem, self._part
        n = part.num_rows
        c = part.cross[p.active, targets] - np.outer(p.mean, part.total[targets])
        c /= n * p.scale[:, None]
        return np.ascontiguousarray(c.T), part.square[targets] / n

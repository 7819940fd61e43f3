"""Lasso and elastic net for all targets on the shared Gram matrix, with certified duality gaps.

The penalty is ``λ (ρ ‖w‖₁ + ½ (1 - ρ) ‖w‖²)`` on standardised weights, ρ = ``l1_ratio``: the
objective of scikit-learn's ``ElasticNet`` and of glmnet on standardised masks, so their λ compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution, certificate, target_blocks
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.lasso_kernel import solve_paths
from coarlib.regression.solvers.least_squares import LeastSquares
from coarlib.statistics.arrays import in_threads

__all__ = ["Lasso", "largest_lambda", "validation_moments"]

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


@dataclass(frozen=True)
class Lasso(Solver):
    """The lasso, or elastic net, of every target.

    Parameters
    ----------
    lam : float or float64 [T], optional
        Fit at this λ. Without it, follow a path of ``num_lambdas`` from each target's largest
        useful λ down to ``eps`` times it and keep the λ with the smallest error on held-out rows.
    num_lambdas, eps
        The path.
    l1_ratio : float
        1 is the lasso, less is elastic net (0 is ridge and has its own solver).
    positive : bool
        Only weights ≥ 0.
    tol : float
        Largest duality gap, relative to half a target's variance.
    patience : int
        A target's path stops when its validation error has been above its minimum for so many λ.
    start : float [N, T], optional
        Raw-unit weights to start from.
    """

    name: ClassVar[str] = "lasso"
    lam: float | NDArray[np.float64] | None = field(default=None, compare=False)
    num_lambdas: int = NUM_LAMBDAS
    eps: float = EPS
    l1_ratio: float = 1.0
    positive: bool = False
    tol: float = TOLERANCE
    patience: int = PATIENCE
    start: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = np.asarray(0.0 if self.lam is None else self.lam)
        if not (np.isfinite(given).all() and (given >= 0).all()):
            raise RegressionError(f"λ must be finite and not negative, not {self.lam}")
        if not 0 < self.l1_ratio <= 1:
            raise RegressionError(
                f"l1_ratio must be in (0, 1], not {self.l1_ratio}; 0 is solver ridge"
            )
        if self.num_lambdas < 1 or not 0 < self.eps < 1 or not self.tol > 0:
            raise RegressionError(
                "a path needs at least one λ, 0 < eps < 1 and a positive tolerance, not "
                f"{self.num_lambdas} λ, eps = {self.eps}, tolerance = {self.tol}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """X'X, and held-out rows where λ is not given."""
        return frozenset({"gram"} | ({"validation"} if self.lam is None else set()))

    def refit(self, found: Attributions) -> Lasso:
        """Keep the chosen λ, and start from the weights."""
        return self if self.lam is not None else replace(self, lam=found.lam, start=found.weight)

    def work(self, size: Size) -> float:
        """What a path of a target takes, measured at 2,000 features."""
        return 6.0 * size.targets * (size.features / 2000) ** 2 * 1e8

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``path``: arrays [T, L] of λ, gap, non-zero weights, validation error and sweeps (NaN
            where the path had stopped).
        """
        if problem.gram.numel() == 0 and problem.num_active > 0:
            raise RegressionError("the lasso works on X'X and has no dual form")
        if problem.num_active == 0:
            return Solution.empty(problem, "no feature varies: the mean of each target")
        if self.lam is not None and not np.any(self.lam) and not self.positive:
            return LeastSquares().solve(problem)
        if self.lam is None and problem.validation is None:
            raise RegressionError(
                "a lasso path needs held-out rows to choose λ by them, or give one λ"
            )
        name = "lasso" if self.l1_ratio == 1 else f"elastic net (l1_ratio {self.l1_ratio:g})"
        how = f"path of {self.num_lambdas} λ, validation error"
        if self.lam is not None:
            how = "at the given λ"
        solution = Solution.empty(problem, f"{name} by coordinate descent, {how}")
        lams = self._lambdas(problem)
        logs = np.full((problem.num_targets, len(PATH_KEYS), lams.shape[1]), np.nan)
        gram = np.ascontiguousarray(problem.gram.cpu().numpy())
        val = _Validation(problem, None if self.lam is not None else problem.validation)
        for targets in target_blocks(problem.num_targets):
            c = np.ascontiguousarray(problem.covariance(targets).cpu().numpy().T)
            weights = np.zeros_like(c)
            best = np.zeros(len(c), np.int64)
            arrays = (
                gram,
                c,
                problem.variance[targets],
                lams[targets],
                self.l1_ratio,
                self.positive,
                self.tol,
                _start(problem, self.start, targets, c.shape),
                val.gram,
                *val.targets(targets),
                self.patience,
                weights,
                logs[targets],
                best,
            )

            def solve_some(some: slice, arrays: tuple[Any, ...] = arrays) -> None:
                solve_paths((some.start, some.stop), *arrays)

            in_threads(solve_some, len(c), CHUNK, torch.get_num_threads())
            solution.lam[targets] = lams[targets][np.arange(len(best)), best]
            weight = torch.from_numpy(weights.T.copy()).to(problem.device)
            solution.fill(problem, targets, weight)
            rounding = self._rounding(problem, solution, targets, weight)
            yy = problem.variance[targets]
            solution.gap[targets] = _certified(yy, logs[targets], best) + certificate(rounding, yy)
        solution.iterations = int(np.nansum(logs[:, 3]))
        solution.path = {"lam": lams} | {key: logs[:, i] for i, key in enumerate(PATH_KEYS)}
        missed = int((solution.gap > self.tol).sum())
        solution.details |= {"tolerance": self.tol, "targets_above_tolerance": missed}
        if missed:
            solution.status += f"; {missed} targets stopped above the gap {self.tol:g}"
        return solution

    def _rounding(
        self, problem: Problem, solution: Solution, targets: slice, weight: torch.Tensor
    ) -> NDArray[np.float64]:
        """What the objective of each target rises by as its weights [M, t] become float32."""
        raw = torch.as_tensor(solution.weight[problem.active, targets], device=weight.device)
        saved = raw.double() * torch.as_tensor(problem.scale, device=weight.device)[:, None]
        lost = saved - weight
        lam = torch.as_tensor(solution.lam[targets], device=weight.device)
        ridge = lam * (1 - self.l1_ratio)
        gradient = problem.times_gram(weight + 0.5 * lost) - problem.covariance(targets)
        gradient += ridge * (weight + 0.5 * lost)
        norms = lam * self.l1_ratio * (saved.abs() - weight.abs())
        return np.asarray((gradient * lost + norms).sum(0).clamp_min(0).cpu().numpy())

    def _lambdas(self, problem: Problem) -> NDArray[np.float64]:
        """The λ to solve at, descending, [T, L]."""
        if self.lam is not None:
            each = np.broadcast_to(np.asarray(self.lam, float), problem.num_targets)
            return np.ascontiguousarray(each[:, None])
        blocks = target_blocks(problem.num_targets)
        tops = [largest_lambda(problem, b, self.l1_ratio, self.positive) for b in blocks]
        return np.concatenate(tops)[:, None] * np.geomspace(1, self.eps, self.num_lambdas)


def _certified(
    variance: NDArray[np.float64], logs: NDArray[np.float64], best: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Certificates of the chosen λ [t]; an error where one along the path bounds nothing."""
    gaps = np.where(np.isnan(logs[:, 3]), 0.0, logs[:, 0]).T  # [L, t]
    certified = np.stack([certificate(0.5 * variance * gap, variance) for gap in gaps])
    return np.asarray(certified[best, np.arange(len(best))])


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

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
from coarlib.regression.problem import Problem, Solution, certificate, target_blocks
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.lasso_paths import Paths
from coarlib.regression.solvers.lasso_products import PathBlock, Rules
from coarlib.regression.solvers.least_squares import LeastSquares

__all__ = ["Lasso", "largest_lambda"]

NUM_LAMBDAS = 100
EPS = 1e-2
TOLERANCE, PATH_TOLERANCE = 1e-6, 1e-4
PATIENCE = 5
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
        Largest duality gap of the weights that are kept, relative to half a target's variance.
    path_tol : float
        The same at the other λ of a path, which only choose; not less than ``tol``.
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
    path_tol: float = PATH_TOLERANCE
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
        positive = self.tol > 0 and self.path_tol > 0
        if self.num_lambdas < 1 or not 0 < self.eps < 1 or not positive:
            raise RegressionError(
                "a path needs at least one λ, 0 < eps < 1 and positive tolerances, not "
                f"{self.num_lambdas} λ, eps = {self.eps}, tolerances = {self.tol}, {self.path_tol}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """X'X, and held-out rows where λ is not given."""
        return frozenset({"gram"} | ({"validation"} if self.lam is None else set()))

    def refit(self, found: Attributions) -> Lasso:
        """Keep the chosen λ, and start from the weights."""
        return self if self.lam is not None else replace(self, lam=found.lam, start=found.weight)

    def work(self, size: Size) -> float:
        """What a path of a target takes, measured at 240 and 2,000 features."""
        return size.targets * (4e7 + 6e8 * (size.features / 2000) ** 2)

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
        solution = Solution.empty(problem, f"{name}, {how}")
        lams = self._lambdas(problem)
        logs = np.full((problem.num_targets, len(PATH_KEYS), lams.shape[1]), np.nan)
        rules = Rules(self.l1_ratio, self.positive, self.tol, self.patience)
        held = None if self.lam is not None else problem.validation
        path_tol = self.tol if self.lam is not None else self.path_tol
        paths = Paths(problem, rules, path_tol, held, self.start)
        for targets in target_blocks(problem.num_targets):
            block = paths.solve(targets, lams[targets], logs[targets])
            solution.lam[targets] = block.lam
            weight = torch.from_numpy(block.weights.T.copy()).to(problem.device)
            solution.fill(problem, targets, weight)
            rounding = self._rounding(problem, solution, targets, weight)
            yy = problem.variance[targets]
            solution.gap[targets] = _certified(block) + certificate(rounding, yy)
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


def _certified(block: PathBlock) -> NDArray[np.float64]:
    """Certificates of the chosen λ [t]; an error where one along the path bounds nothing."""
    gaps = np.where(np.isnan(block.logs[:, 3]), 0.0, block.logs[:, 0]).T  # [L, t]
    certified = np.stack([certificate(0.5 * block.yy * gap, block.yy) for gap in gaps])
    return np.asarray(certified[block.best, np.arange(len(block.best))])

"""Least squares, and ridge at a given λ, by Cholesky with refinement and a certificate.

The Cholesky factor of R + λI serves all targets. Where R is singular (no more rows than features,
or features that move together) plain least squares has no unique answer; the one of smallest norm
in standardised units is returned and the status says so. Ridge by cross-validation
(:mod:`coarlib.regression.solvers.ridge`) predicts far better there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.moments.counts import column_sums
from coarlib.regression.problem import (
    Problem,
    Solution,
    quadratic_certificate,
    target_blocks,
)
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.errors import (
    add_errors,
    add_posterior_errors,
    add_robust_errors,
    noise_sd,
)

__all__ = ["LeastSquares", "cholesky", "condition_number", "nothing_varies"]

# Beyond this the smallest eigenvalue is within rounding of zero.
SINGULAR_CONDITION = 1e12
REFINE_ABOVE = 1e-9  # relative residual of the normal equations
# A float32 inverse is refined as well, up to this condition; bounds taken from it want a margin. It
# pays from so many features on.
NARROW_CONDITION, NARROW_MARGIN, NARROW_FROM = 1e4, 1.1, 512
REFINE_STEPS = 4
SMALL_GAP = 5e-11  # a certificate that is not worth another product
ROWS_FOR_ERRORS = 1500  # a variance from so many squares is within some 7%, an error within 4%


@dataclass(frozen=True)
class LeastSquares(Solver):
    """Least squares; where it has no unique answer, the one of smallest norm.

    Parameters
    ----------
    errors : str
        ``"robust"``: standard errors that hold where residuals are larger for some masks than for
        others (HC3, HC2), by one more pass over the rows; ``"classical"``: equal variances, for
        free; ``"auto"``: robust from at most 1,500 of the rows, where they are at hand.
    """

    name: ClassVar[str] = "least_squares"
    errors: str = "auto"

    def __post_init__(self) -> None:
        if self.errors not in ("auto", "robust", "classical"):
            raise RegressionError(f"errors are auto, robust or classical, not {self.errors!r}")

    @property
    def shrinks(self) -> bool:
        """Not at all."""
        return False

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``details``: ``condition`` (1-norm), ``degrees_of_freedom`` (parameters, with
            intercept), ``singular``, and which ``errors`` there are. None are given where the
            answer is not unique, or hardly.
        """
        if problem.num_active == 0:
            return nothing_varies(problem)
        if problem.gram.numel() == 0:
            return min_norm(problem, "dual form")
        if problem.num_rows <= problem.num_active:
            return min_norm(problem, f"{problem.num_rows} rows for {problem.num_active} features")
        rows = 0 if self.errors == "classical" or problem.source is None else problem.num_rows
        if self.errors == "robust" and problem.source is None:
            raise RegressionError("robust errors read the rows again: fit rows, not their moments")
        if self.errors == "auto":
            rows = min(rows, ROWS_FOR_ERRORS)
        solution = cholesky(problem, 0.0, rows)
        if solution is None:
            return min_norm(problem, "features that are linear combinations of others")
        return solution

    def work(self, size: Size) -> float:
        """A factor, its inverse and products with it."""
        return 1.5 * size.side**3 + 4.0 * size.side * size.features * size.targets


def cholesky(problem: Problem, lam: float, rows: int = 0) -> Solution | None:
    """Solve (R + λI) W = C by Cholesky; None where that is singular to working precision.

    Standard errors come from the residuals of ``rows`` rows, if any, which are read again.
    """
    matrix = problem.gram
    if lam:
        matrix = matrix.clone()
        matrix.diagonal().add_(lam)
    found = _inverted(matrix)
    if found is None:
        return None
    narrow, inverse, largest, smallest = found
    margin = NARROW_MARGIN if narrow.dtype == torch.float32 else 1.0
    bounds = smallest / margin, largest * margin
    solution = Solution.empty(problem, "ridge by Cholesky" if lam else "least squares by Cholesky")
    solution.lam[:] = lam
    rss = np.zeros(problem.num_targets)
    for targets in target_blocks(problem.num_targets):
        c = problem.covariance(targets)
        yy = problem.variance[targets]
        enough = SMALL_GAP * bounds[0] * yy
        weight, squares = _refined(matrix, narrow, inverse, c, enough)
        fitted = (weight * (2 * c - problem.gram @ weight if lam else c)).sum(0).cpu().numpy()
        rss[targets] = problem.num_rows * np.maximum(yy - fitted, 0)
        lost = solution.fill(problem, targets, weight)
        solution.gap[targets] = quadratic_certificate(squares, *bounds, lost, yy)
    diagonal = inverse.diagonal().cpu().numpy()
    dof = problem.num_active - lam * float(diagonal.sum()) + 1
    sigma = noise_sd(problem, rss, dof)
    if lam:
        add_posterior_errors(problem, solution, diagonal, lam * diagonal, sigma)
    elif rows:
        add_robust_errors(problem, solution, inverse, rows)
    else:
        add_errors(problem, solution, diagonal, sigma)
    solution.details |= {
        "condition": largest / smallest,
        "degrees_of_freedom": dof,
        "singular": False,
    }
    return solution


def _inverted(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float, float] | None:
    """Invert A, in float32 where that is good enough to refine with; bound its eigenvalues.

    Returns
    -------
    A in that precision, inverse, largest, smallest
        None where A is singular to working precision.
    """
    for dtype, most in ((torch.float32, NARROW_CONDITION), (matrix.dtype, SINGULAR_CONDITION)):
        if dtype == torch.float32 and len(matrix) < NARROW_FROM:
            continue
        narrow = matrix.to(dtype)
        factor = _lower_factor(narrow)
        if factor is None:
            continue
        inverse = torch.cholesky_inverse(factor)
        largest, smallest = _eigenvalue_bounds(narrow, inverse)
        if smallest > 0 and largest / smallest <= most:
            return narrow, inverse, largest, smallest
    return None


def _lower_factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """Cholesky factor below its diagonal, and anything above; None where A is not positive."""
    if matrix.device.type != "cpu" or len(matrix) < NARROW_FROM:
        factor, info = torch.linalg.cholesky_ex(matrix)
    else:  # torch clears what lies above, which takes it as long as the factor itself
        from scipy.linalg import get_lapack_funcs

        symmetric = matrix.numpy().T  # in Fortran's order
        (potrf,) = get_lapack_funcs(("potrf",), (symmetric,))
        factor, info = potrf(symmetric, lower=True, clean=False)
        factor = torch.from_numpy(factor)
    return factor if int(info) == 0 else None


def _refined(
    matrix: torch.Tensor,
    narrow: torch.Tensor,
    inverse: torch.Tensor,
    c: torch.Tensor,
    enough: NDArray[np.float64],
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Solve A W = C by the inverse and refinement steps; return W and a bound of ‖C - AW‖².

    A product with the inverse is several times faster than triangular solves, and refinement
    makes up for what it loses, be it in float32. Only the first gradient is a product in float64:
    later ones change by products of small steps, whose rounding is added to the norms. A step about
    squares what is left, relative to C; after one that makes it small, a bound that is ``enough``,
    float64 [t], comes from the gradient before it. (A step X g shortens the way to the optimum in
    the norm of A wherever 0 < X < 2 A⁻¹: an inverse within a factor of two does, and ours is within
    a tenth.)
    """
    weight = (inverse @ c.to(inverse.dtype)).to(c.dtype)
    gradient = torch.addmm(c, matrix, weight, beta=1, alpha=-1)
    scale = column_sums(c)[1].clamp_min(torch.finfo(c.dtype).tiny)
    squares = column_sums(gradient)[1]
    rounding = torch.zeros_like(scale)
    unit = torch.finfo(narrow.dtype).eps
    for _ in range(REFINE_STEPS):
        left = float((squares / scale).max())
        if left <= REFINE_ABOVE**2:
            break
        step = inverse @ gradient.to(inverse.dtype)
        weight += step
        if left <= REFINE_ABOVE and (squares.cpu().numpy() <= enough).all():
            break
        gradient -= narrow @ step
        squares = column_sums(gradient)[1]
        lost = unit * torch.linalg.vector_norm(narrow)
        rounding += lost * column_sums(step)[1].sqrt()
    return weight, (squares.sqrt() + rounding).square().cpu().numpy()


def _eigenvalue_bounds(matrix: torch.Tensor, inverse: torch.Tensor) -> tuple[float, float]:
    """Bound the eigenvalues of A from above and below by the 1-norms of A and A⁻¹."""
    # Both are symmetric: sums along what lies together in memory are ten times as fast.
    above, below = (
        float(torch.linalg.vector_norm(m, 1, dim=int(m.stride(1) <= m.stride(0))).max())
        for m in (matrix, inverse)
    )
    return above, 1 / below if below > 0 else np.inf


def min_norm(problem: Problem, reason: str) -> Solution:
    """Fit the least-squares weights of smallest norm by an eigendecomposition of R."""
    values, vectors = problem.eigen()
    rank = len(values)
    solution = Solution.empty(problem, f"least squares of smallest norm ({reason})")
    for targets in target_blocks(problem.num_targets):
        c = problem.covariance(targets)
        weight = vectors @ ((vectors.T @ c) / values[:, None])
        left = c - problem.exact_times_gram(weight)
        yy = problem.variance[targets]
        lost = solution.fill(problem, targets, weight)
        squares = (vectors.T @ left).square().sum(0).cpu().numpy()
        if rank >= problem.num_rows - 1:  # the optimum is 0, so the objective is the excess
            unexplained = yy - (weight * (c + left)).sum(0).cpu().numpy()
            squares = np.maximum(unexplained, 0) * float(values[0])
        solution.gap[targets] = quadratic_certificate(
            squares, float(values[0]), float(values[-1]), lost, yy
        )
    solution.details |= {
        "condition": float("inf"),
        "rank": rank,
        "degrees_of_freedom": rank + 1.0,
        "singular": True,
    }
    return solution


def nothing_varies(problem: Problem) -> Solution:
    """Return the means of the targets, where no feature varies."""
    solution = Solution.empty(problem, "no feature varies: the mean of each target")
    solution.details |= {"condition": 1.0, "degrees_of_freedom": 1.0, "singular": True}
    return solution


def condition_number(problem: Problem) -> float:
    """Condition number of R in the 1-norm; inf where it is singular."""
    factor = _lower_factor(problem.gram)
    if problem.num_rows <= problem.num_active or factor is None:
        return float("inf")
    largest, smallest = _eigenvalue_bounds(problem.gram, torch.cholesky_inverse(factor))
    return largest / smallest

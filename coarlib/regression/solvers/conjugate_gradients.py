"""Ridge and least squares by conjugate gradients: products with R only, all targets in one pass.

Each target has its own step lengths (its Krylov space is its own), but all share the products
R P, which a streamed problem forms by one pass over the rows. Reference: Hestenes and Stiefel
(1952); the preconditioner is the unit diagonal of R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from coarlib.errors import RegressionError
from coarlib.regression.problem import Problem, Solution, certificate, quadratic_certificate
from coarlib.regression.solvers.base import Size, Solver

__all__ = ["ConjugateGradients"]

TOLERANCE = 1e-5
MAX_STEPS = 500


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Ridge at λ, or least squares, without forming or factoring R.

    Parameters
    ----------
    lam : float
        Penalty ½ λ ‖w‖², standardised units; 0 is least squares.
    tol : float
        Stop when every target's gradient is below ``tol`` times its first one.
    max_steps : int
        Passes over the rows at most.
    """

    name: ClassVar[str] = "conjugate_gradients"
    lam: float = 0.0
    tol: float = TOLERANCE
    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        usable = self.lam >= 0 and np.isfinite(self.lam) and self.tol > 0 and self.max_steps >= 1
        if not usable:
            raise RegressionError(
                f"λ must not be negative, the tolerance positive and at least one step allowed, "
                f"not {self.lam}, {self.tol} and {self.max_steps}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """The rows, once a step."""
        return frozenset({"rows"})

    def work(self, size: Size) -> float:
        """Some fifty steps."""
        return 4.0 * 50 * size.features * size.targets * size.rows

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets.

        Returns
        -------
        Solution
            ``gap`` is ‖gradient‖² / (2 λ), a bound, relative to ½ yy. For λ = 0 that bounds
            nothing: the gap is then the whole unexplained variance, which no weights can make
            negative, and ``details["relative_gradient"]`` says how far it came.
        """
        lam = self.lam
        solution = Solution.empty(problem, "ridge" if lam else "least squares")
        c = problem.covariance()
        weight, gradient = torch.zeros_like(c), c.clone()
        direction = gradient.clone()
        first = gradient.square().sum(0)
        now, steps = first.clone(), 0
        while steps < self.max_steps and bool((now > self.tol**2 * first).any()):
            product = problem.times_gram(direction) + lam * direction
            curvature = (direction * product).sum(0)
            length = torch.where(curvature > 0, now / curvature.clamp_min(1e-300), now * 0)
            weight += length * direction
            gradient -= length * product
            new = gradient.square().sum(0)
            direction = (
                gradient + torch.where(now > 0, new / now.clamp_min(1e-300), now * 0) * direction
            )
            now, steps = new, steps + 1
        # The true gradient, not the recurrence's.
        gradient = c - problem.exact_times_gram(weight) - lam * weight
        squares = gradient.square().sum(0)
        relative = (squares / first.clamp_min(1e-300)).sqrt()
        lost = solution.fill(problem, slice(None), weight)
        solution.lam[:], solution.iterations = lam, steps
        most = problem.num_active + lam  # R's largest eigenvalue is at most its trace
        if lam:
            solution.gap = quadratic_certificate(
                squares.cpu().numpy(), lam, most, lost, problem.variance
            )
        else:
            explained = (weight * (c + gradient)).sum(0).cpu().numpy()
            left = np.sqrt(np.maximum(problem.variance - explained, 0)) + np.sqrt(most * lost)
            solution.gap = certificate(0.5 * left**2, problem.variance)
        solution.status += f" by conjugate gradients, {steps} passes over the rows"
        solution.details["relative_gradient"] = float(relative.max())
        return solution

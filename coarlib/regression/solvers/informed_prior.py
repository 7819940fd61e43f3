"""The shared prior about cheap guesses of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coarlib.errors import RegressionError
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.solvers.base import Size
from coarlib.regression.solvers.shared_prior import SharedPrior

__all__ = ["InformedPrior"]


@dataclass(frozen=True)
class InformedPrior(SharedPrior):
    """:class:`SharedPrior` about ``scores``, which must be given."""

    name: ClassVar[str] = "informed_prior"

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets."""
        if self.scores is None:
            raise RegressionError(
                "solver informed_prior needs scores to shrink towards (coar gradient_scores makes "
                "some)"
            )
        return super().solve(problem)

    def work(self, size: Size) -> float:
        """As of the shared prior, with products of the scores in every step."""
        return 2 * super().work(size)

"""Several solvers, of which the held-out rows choose one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.gradient_passes import PassSums
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.bayes import Bayes
from coarlib.regression.solvers.informed_prior import InformedPrior
from coarlib.regression.solvers.lasso import Lasso
from coarlib.regression.solvers.ridge import Ridge
from coarlib.regression.solvers.shared_prior import SharedPrior
from coarlib.regression.solvers.tempered_prior import TemperedPrior

__all__ = ["Auto"]

LARGE = 4096  # features beyond which a matrix over them is made for no candidate with few rows


@dataclass(frozen=True)
class Auto(Solver):
    """Of several candidates the one that predicts the held-out rows best.

    Parameters
    ----------
    candidates : tuple of Solver
    scores : float [N, T], optional
        Cheap guesses of the weights; with them :class:`InformedPrior` is a candidate too.
    groups : int64 [N], optional
        The group of each feature, for the scores.
    scores_cost : float, optional
        What the scores took, in forward passes over the examples.
    passes : PassSums, optional
        Gradient passes; with them :class:`Bayes` is a candidate too.
    """

    name: ClassVar[str] = "auto"
    candidates: tuple[Solver, ...] = (Ridge(), SharedPrior(), TemperedPrior(), Lasso())
    scores: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    groups: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    scores_cost: float | None = None
    passes: PassSums | None = field(default=None, compare=False, repr=False)

    @property
    def _joined(self) -> Bayes:
        return Bayes(self.passes, self.scores, self.groups, scores_cost=self.scores_cost)

    @property
    def prior_passes(self) -> float | None:
        """Of all evidence, whichever candidate is kept: the choice among them had it."""
        return self._joined.prior_passes

    def usable(self, size: Size) -> list[Solver]:
        """Return the candidates, without those that want a matrix far larger than the rows do."""
        every = [*self.candidates]
        if self.scores is not None:
            informed = InformedPrior(
                scores=self.scores, groups=self.groups, scores_cost=self.scores_cost
            )
            every.append(informed)
        if self.passes is not None:
            every.append(self._joined)
        wide = size.features > LARGE and 2 * size.total < size.features
        return [solver for solver in every if not (wide and "gram" in solver.needs)]

    def of_targets(self, which: NDArray[np.int64]) -> Solver:
        """Return the same for some targets, and so each candidate."""
        every = tuple(candidate.of_targets(which) for candidate in self.candidates)
        return super(Auto, replace(self, candidates=every)).of_targets(which)

    def solve(self, problem: Problem) -> Solution:
        """Refuse: moments alone have no held-out rows."""
        raise RegressionError("solver auto chooses on held-out rows: fit rows, not their moments")

"""From moments, and the rows where they are at hand, to the problem that a solver takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.cost import COST, Cost
from coarlib.regression.dual import DualProblem, finite_masks
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers import Solver
from coarlib.regression.stream import StreamProblem

__all__ = ["problem_of", "solve"]

Rows = tuple[RowSource, NDArray[np.int64]]


def problem_of(
    moments: Moments,
    rows: Rows | None = None,
    form: str = "primal",
    device: torch.device | str = "cpu",
    *,
    validation: Moments | None = None,
    folds: Sequence[Moments] = (),
) -> Problem:
    """Make a problem.

    Parameters
    ----------
    moments : Moments
    rows : (RowSource, int64 [K]), optional
        The rows that the moments sum; the dual and the streamed form need them.
    form : str
        ``"primal"``: a matrix over features; ``"dual"``: one over rows; ``"stream"``: neither.
    device : torch.device or str
    validation : Moments, optional
        Other rows, for a solver that chooses λ by them.
    folds : sequence of Moments
        Parts that add up to ``moments``, for a solver that chooses λ by them.
    """
    if form != "primal" and rows is None:
        raise RegressionError(
            f"a problem in {form} form reads the rows again: pass rows, not only their moments"
        )
    problem: Problem
    if form == "primal" or rows is None:
        problem = Problem.from_moments(moments, device)
    elif form == "dual":
        problem = DualProblem.from_masks(moments, finite_masks(*rows), device)
    else:
        problem = StreamProblem.from_source(moments, *rows, device)
    if rows is not None:
        problem = replace(problem, source=rows[0], positions=rows[1])
    return replace(problem, validation=validation, folds=tuple(folds))


def solve(solver: Solver, problem: Problem) -> Attributions:
    """Solve a problem; its summary names the solver."""
    attributions = Attributions.from_solution(problem, solver.solve(problem))
    rows = problem.num_rows + problem.moments.num_excluded
    attributions.summary |= {
        "solver": solver.name,
        COST: Cost(rows, solver.prior_passes).as_json(),
    }
    return attributions

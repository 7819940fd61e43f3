"""One door to the solvers: moments in, attributions out."""

from __future__ import annotations

from typing import Any

import torch

from coarlib.commandline import nearest
from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.least_squares import solve_least_squares, solve_ridge
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem
from coarlib.regression.ridge import solve_ridge_path

__all__ = ["SOLVERS", "fit", "fit_least_squares"]

SOLVERS = ("least_squares", "ridge")


def fit(
    moments: Moments,
    solver: str = "ridge",
    *,
    lam: float | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Attributions:
    """Fit attributions from moments.

    Parameters
    ----------
    moments : Moments
    solver : str
        ``"least_squares"``, or ``"ridge"`` (at ``lam``, or λ chosen by generalised
        cross-validation; options of :func:`~coarlib.regression.ridge.solve_ridge_path`).
    lam : float, optional
        Penalty in standardised units.
    device : torch.device or str

    Raises
    ------
    RegressionError
        For an unknown solver or contradictory options.
    """
    if solver not in SOLVERS:
        raise RegressionError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}")
    problem = Problem.from_moments(moments, device)
    if solver == "least_squares":
        if lam:
            raise RegressionError("least squares has no λ; use solver='ridge'")
        solution = solve_least_squares(problem, **options)
    elif lam is not None:
        solution = solve_ridge(problem, lam, **options)
    else:
        solution = solve_ridge_path(problem, **options)
    attributions = Attributions.from_solution(problem, solution)
    attributions.summary["solver"] = solver
    return attributions


def fit_least_squares(moments: Moments, device: torch.device | str = "cpu") -> Attributions:
    """Fit least squares; where it has no unique answer, the one of smallest norm."""
    return fit(moments, "least_squares", device=device)

"""One door to the solvers: moments in, attributions out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError, nearest
from coarlib.regression.attributions import Attributions
from coarlib.regression.dual import DualProblem
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers.conjugate_gradients import solve_conjugate_gradients
from coarlib.regression.solvers.lasso import solve_lasso
from coarlib.regression.solvers.least_squares import solve_least_squares, solve_ridge
from coarlib.regression.solvers.prior import Prior, learn_prior
from coarlib.regression.solvers.ridge import solve_ridge_path
from coarlib.regression.solvers.saga import solve_saga
from coarlib.regression.solvers.shared_prior import solve_informed_prior, solve_shared_prior
from coarlib.regression.stream import StreamProblem

__all__ = [
    "NEED_SCORES",
    "SHARE_PRIOR",
    "SOLVERS",
    "STREAMING",
    "USE_VALIDATION",
    "fit",
    "fit_least_squares",
    "prior_of_moments",
]


def _ridge(problem: Problem, lam: float | None = None, **options: Any) -> Solution:
    """Ridge at ``lam``, or with λ chosen by the data."""
    if lam is None:
        return solve_ridge_path(problem, **options)
    if isinstance(problem, DualProblem):
        return solve_ridge_path(problem, np.array([lam]), **options)
    return solve_ridge(problem, lam, **options)


SOLVERS: dict[str, Callable[..., Solution]] = {
    "least_squares": solve_least_squares,
    "ridge": _ridge,
    "shared_prior": solve_shared_prior,
    "tempered_prior": partial(solve_shared_prior, temper=0.5),
    "informed_prior": solve_informed_prior,
    "lasso": solve_lasso,
}
STREAMING: dict[str, Callable[..., Solution]] = {
    "conjugate_gradients": solve_conjugate_gradients,
    "saga": solve_saga,
}
SOLVERS |= STREAMING
NEED_SCORES = ("informed_prior",)
SHARE_PRIOR = ("shared_prior", "tempered_prior")  # one learnt prior, used in two ways
USE_VALIDATION = ("lasso",)  # their λ comes from held-out rows, so a final fit is given it


def fit(
    moments: Moments,
    solver: str = "ridge",
    *,
    masks: NDArray[np.bool_] | None = None,
    rows: tuple[RowSource, NDArray[np.int64]] | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Attributions:
    """Fit attributions from moments.

    Parameters
    ----------
    moments : Moments
    solver : str
        ``"least_squares"``; ``"ridge"`` (at ``lam``, or λ by generalised cross-validation);
        ``"shared_prior"`` (empirical Bayes); ``"tempered_prior"`` (half-way between the last two);
        ``"informed_prior"`` (empirical Bayes about ``scores`` [N, T]);
        ``"lasso"`` (at ``lam``, or a path with ``validation`` moments; elastic net by
        ``l1_ratio``); or, where no Gram matrix fits, ``"conjugate_gradients"`` (ridge or least
        squares at ``lam``) and ``"saga"`` (lasso at ``lam``), which need ``rows``.
    masks : bool [n, N], optional
        The masks of the rows, for the dual form; needed where the moments are without X'X.
    rows : (RowSource, int64 [K]), optional
        The source and positions of the rows, for the streaming solvers.
    device : torch.device or str
    **options
        Arguments of the solver's own function.

    Raises
    ------
    RegressionError
        For an unknown solver or contradictory options.
    """
    if solver not in SOLVERS:
        raise RegressionError(
            f"unknown solver {solver!r}{nearest(solver, SOLVERS)} (there are {', '.join(SOLVERS)})"
        )
    problem: Problem
    if solver in STREAMING:
        if rows is None:
            raise RegressionError(f"solver {solver} reads the rows again: pass rows=")
        problem = StreamProblem.from_source(moments, *rows, device)
    elif solver == "lasso" and masks is not None:
        raise RegressionError("the lasso works on X'X and has no dual form")
    else:
        problem = _problem(moments, masks, device)
    try:
        solution = SOLVERS[solver](problem, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise RegressionError(f"solver {solver} does not take these options: {error}") from error
    attributions = Attributions.from_solution(problem, solution)
    attributions.summary["solver"] = solver
    return attributions


def prior_of_moments(
    moments: Moments,
    *,
    masks: NDArray[np.bool_] | None = None,
    device: torch.device | str = "cpu",
) -> Prior:
    """Learn what the solvers of ``SHARE_PRIOR`` learn; with ``prior=`` this, `fit` does not again.

    Parameters
    ----------
    moments, masks, device
        As in :func:`fit`.
    """
    return learn_prior(_problem(moments, masks, device))


def _problem(
    moments: Moments, masks: NDArray[np.bool_] | None, device: torch.device | str
) -> Problem:
    if masks is None:
        return Problem.from_moments(moments, device)
    return DualProblem.from_masks(moments, masks, device)


def fit_least_squares(moments: Moments, device: torch.device | str = "cpu") -> Attributions:
    """Fit least squares; where it has no unique answer, the one of smallest norm."""
    return fit(moments, "least_squares", device=device)

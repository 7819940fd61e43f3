"""Solvers: one module each, and their registry."""

from __future__ import annotations

from typing import Any

from coarlib.errors import RegressionError
from coarlib.regression.solvers.auto import Auto
from coarlib.regression.solvers.base import Size, Solver, solver_named
from coarlib.regression.solvers.bayes import Bayes
from coarlib.regression.solvers.conjugate_gradients import ConjugateGradients
from coarlib.regression.solvers.informed_prior import InformedPrior
from coarlib.regression.solvers.lasso import Lasso
from coarlib.regression.solvers.least_squares import LeastSquares
from coarlib.regression.solvers.ridge import Ridge
from coarlib.regression.solvers.saga import Saga
from coarlib.regression.solvers.shared_prior import SharedPrior
from coarlib.regression.solvers.tempered_prior import TemperedPrior

__all__ = [
    "SOLVERS",
    "Auto",
    "Bayes",
    "ConjugateGradients",
    "InformedPrior",
    "Lasso",
    "LeastSquares",
    "Ridge",
    "Saga",
    "SharedPrior",
    "Size",
    "Solver",
    "TemperedPrior",
    "register",
    "solver_of",
]

SOLVERS: dict[str, type[Solver]] = {}


def register(solver: type[Solver]) -> type[Solver]:
    """Make a solver known by its name, to :func:`coarlib.regression.fit` and to commands."""
    SOLVERS[solver.name] = solver
    return solver


register(Auto)
register(LeastSquares)
register(Ridge)
register(SharedPrior)
register(TemperedPrior)
register(InformedPrior)
register(Bayes)
register(Lasso)
register(ConjugateGradients)
register(Saga)


def solver_of(solver: str | Solver, **options: Any) -> Solver:
    """Return the solver that a name (with options) or an instance (without) means.

    Raises
    ------
    RegressionError
        For an unknown name or option, or options beside an instance.
    """
    if isinstance(solver, str):
        return solver_named(SOLVERS, solver, options)
    if not isinstance(solver, Solver):
        raise RegressionError(f"solver is a name or a Solver, not {solver!r}")
    if options:
        raise RegressionError(
            f"solver {solver.name} has its options already; {', '.join(options)} cannot be added"
        )
    return solver

"""From rows to attributions: moments, solvers, and what they return."""

from coarlib.regression.attributions import Attributions
from coarlib.regression.fit import fit
from coarlib.regression.heldout import HeldOut, score_arrays, score_rows
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.rows import ArrayRows, BetonRows, RowSource, StoreRows, open_rows
from coarlib.regression.solvers import (
    SOLVERS,
    Auto,
    ConjugateGradients,
    InformedPrior,
    Lasso,
    LeastSquares,
    Ridge,
    Saga,
    SharedPrior,
    Solver,
    TemperedPrior,
    register,
)

__all__ = [
    "SOLVERS",
    "ArrayRows",
    "Attributions",
    "Auto",
    "BetonRows",
    "ConjugateGradients",
    "HeldOut",
    "InformedPrior",
    "Lasso",
    "LeastSquares",
    "Moments",
    "Problem",
    "Ridge",
    "RowSource",
    "Saga",
    "SharedPrior",
    "Solution",
    "Solver",
    "StoreRows",
    "TemperedPrior",
    "fit",
    "open_rows",
    "register",
    "score_arrays",
    "score_rows",
]

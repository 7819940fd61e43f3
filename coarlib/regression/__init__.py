"""From rows to attributions: moments, solvers, and what they return."""

from coarlib.regression.attributions import Attributions
from coarlib.regression.fit import SOLVERS, fit, fit_least_squares
from coarlib.regression.heldout import HeldOut, score_arrays, score_rows
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.rows import ArrayRows, BetonRows, RowSource, StoreRows, open_rows
from coarlib.regression.solvers.ridge import solve_ridge_path

__all__ = [
    "SOLVERS",
    "ArrayRows",
    "Attributions",
    "BetonRows",
    "HeldOut",
    "Moments",
    "Problem",
    "RowSource",
    "Solution",
    "StoreRows",
    "fit",
    "fit_least_squares",
    "open_rows",
    "score_arrays",
    "score_rows",
    "solve_ridge_path",
]

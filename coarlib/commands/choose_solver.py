"""From the arguments of a fit to its solver: the options it has, and those that it has not.

An option that the solver has not is refused in one sentence. Upstream's own keys are warned of
instead where they come from a file or have upstream's name (``--cfg.lr``), so that its
configuration files and command lines work with every solver.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from typing import Any

from coarlib.commands.arguments import Arguments
from coarlib.commands.own_classes import solver_name
from coarlib.errors import RegressionError
from coarlib.regression.solvers import SOLVERS, Solver, solver_of
from coarlib.regression.solvers.prior import load_prior_scores

__all__ = ["AUTO", "FAST_L1", "check_fast_l1", "solver_for", "solver_from"]

AUTO, FAST_L1 = "auto", "fast_l1"
ROWS_A_FEATURE = 3  # below this, plain least squares predicts poorly
UPSTREAMS_WAY = {"k", "manual_max_lambda"}  # who says one of these chooses the solver by them
FIELDS = {
    "lam": "lam",
    "l1_ratio": "l1_ratio",
    "positive": "positive",
    "tol": "tol",
    "folds": "folds",
    "prior_scores": "scores",
    "prior_passes": "scores_cost",
    "lr": "lr",
    "batch_size": "batch_size",
    "k": "num_lambdas",
    "eps": "eps",
}
OF_A_PATH = {"k", "eps", "folds"}  # idle where λ is given
OF_FAST_L1 = {"k", "eps", "manual_max_lambda", "lr", "batch_size", "check_every", "stop_eps"}
NOT_OF_FAST_L1 = {"memory_gb", "learning_curve"}
UPSTREAMS = {*OF_FAST_L1, "num_workers"}
MEANS_NOTHING = {"k": 1, "manual_max_lambda": -1, "l1_ratio": 1, "positive": False}


def solver_from(args: Arguments, num_rows: int, num_features: int, targets: slice) -> Solver:
    """Return the solver that the arguments mean, with its options.

    Parameters
    ----------
    args : Arguments
        Of ``run_regression``; ``solver`` is settled where it was left open.
    num_rows, num_features : int
        Rows to fit, and features.
    targets : slice
        Which targets are fitted.

    Raises
    ------
    RegressionError
        For an option that the solver has not.
    """
    if args.solver is None and not UPSTREAMS_WAY & args.given:
        args.solver = AUTO
    name = solver_name(args.solver or _upstreams_solver(args, num_rows, num_features))
    lam = args.lam
    used = set() if args.solver else set(UPSTREAMS_WAY)
    if lam is None and args.manual_max_lambda > 0 and name in ("lasso", "saga"):
        lam = args.manual_max_lambda
        used.add("manual_max_lambda")
    if args.manual_max_lambda == 0 and name == "least_squares":
        used.add("manual_max_lambda")
    has = {key for key, field in FIELDS.items() if field in _options(name)}
    given = {FIELDS[key]: getattr(args, key) for key in has & args.given}
    if lam is not None and "lam" in has:
        given["lam"] = lam
        given = {
            key: value for key, value in given.items() if key not in map(FIELDS.get, OF_A_PATH)
        }
        has -= OF_A_PATH
    elif args.k == 1:  # not a path of one λ, but upstream's way to say that there is none
        given.pop("num_lambdas", None)
    elif "k" in has:
        given |= {"num_lambdas": args.k, "eps": args.eps}
    if name in SOLVERS:
        _check(args, name + (" at a given λ" if "lam" in given else ""), has | used)
    if "scores_cost" in given and "scores" not in given:
        raise RegressionError("--prior_passes says what --prior_scores cost, which are not given")
    if "scores" in given:
        given |= load_prior_scores(args.prior_scores, targets)
        if args.prior_passes is not None:
            given["scores_cost"] = args.prior_passes
    return solver_of(name, **given)


def check_fast_l1(args: Arguments) -> None:
    """Refuse options that fast_l1 has not."""
    _check(args, FAST_L1, OF_FAST_L1)


def _options(name: str) -> set[str]:
    return {field.name for field in fields(SOLVERS[name])} if name in SOLVERS else set()


def _check(args: Arguments, solver: str, has: set[str]) -> None:
    """Warn of upstream's keys that the solver has not; refuse other options that it has not."""
    known = {*FIELDS, *OF_FAST_L1, "num_workers"}
    known |= NOT_OF_FAST_L1 if solver == FAST_L1 else set()
    warned = []
    for key in sorted((known & args.given) - has):
        value, source = getattr(args, key), args.sources[key]
        if value is None or MEANS_NOTHING.get(key) == value:
            continue
        short = source.startswith("--") and "." not in source
        owners = _owners(key, value)
        if key in UPSTREAMS and not (short and owners):
            warned.append(source.rpartition(": ")[2])
            continue
        raise RegressionError(
            f"{source} is no option of solver {solver}: leave it out, or choose a solver that has "
            f"it ({', '.join(owners)})"
        )
    if warned:
        print(f"warning: no effect on solver {solver}: {', '.join(warned)}", file=sys.stderr)


def _owners(key: str, value: Any) -> list[str]:
    """Return the solvers that have an option."""
    if key in NOT_OF_FAST_L1:
        return list(SOLVERS)
    if key == "manual_max_lambda":
        found = ["lasso", "saga"] if value else ["least_squares"]
    else:
        found = [name for name in SOLVERS if FIELDS.get(key) in _options(name)]
    return found + [FAST_L1] * (key in OF_FAST_L1)


def _upstreams_solver(args: Arguments, num_rows: int, num_features: int) -> str:
    """Return the solver that manual_max_lambda and k mean, printing warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solver = solver_for(args.manual_max_lambda, args.k, num_rows, num_features)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return solver


def solver_for(max_lambda: float, num_lambdas: int, num_rows: int, num_features: int) -> str:
    """Return the solver that upstream's settings mean, with a warning where they are unwise.

    Parameters
    ----------
    max_lambda : float
        ``manual_max_lambda``: 0 is least squares, -1 a lasso path from the largest useful λ.
    num_lambdas : int
        ``k``, the length of the path.
    num_rows, num_features : int
        Rows to fit, and features that may vary.
    """
    if max_lambda not in (-1, 0) and max_lambda < 0:
        raise RegressionError(f"manual_max_lambda must be -1 or at least 0, not {max_lambda}")
    if max_lambda != -1 and num_lambdas != 1:
        raise RegressionError(
            f"manual_max_lambda: {max_lambda:g} fixes one λ, so k must be 1, not {num_lambdas}"
        )
    if max_lambda != 0:
        return "lasso"
    if num_rows <= num_features + 1:
        warnings.warn(
            f"{num_rows} rows do not determine {num_features} weights by least squares "
            "(manual_max_lambda: 0); fitting ridge with λ by cross-validation instead "
            "(--solver chooses another)",
            stacklevel=2,
        )
        return "ridge"
    if num_rows < ROWS_A_FEATURE * num_features:
        warnings.warn(
            f"least squares (manual_max_lambda: 0) on {num_rows} rows for {num_features} features "
            "is noisy; --solver auto usually predicts better",
            stacklevel=2,
        )
    return "least_squares"

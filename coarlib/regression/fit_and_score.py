"""The whole fit of one data set: split the rows, fit, score on held-out rows, fit on all of them.

As upstream, the training rows fit, the held-out ones score that fit (and choose λ, or the solver),
and the weights that are kept come from both together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.budget import Prediction, choose_form
from coarlib.regression.cost import COST
from coarlib.regression.heldout import HeldOut, score_rows
from coarlib.regression.learning_curve import POINTS, learning_curve
from coarlib.regression.moments import Moments
from coarlib.regression.moments.checkpoint import resumable_moments
from coarlib.regression.problems import problem_of, solve
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers import Auto, Bayes, Size, Solver, solver_of
from coarlib.regression.split import Split
from coarlib.regression.tables import layers_of

__all__ = ["FitOptions", "fit_and_score"]

LEAST_TO_CHOOSE = 4
# A learning curve is shown by itself where it is quick and there are rows to tell it from noise.
QUICK_PRODUCTS, QUICK_FEATURES = 5e10, 1024
CURVE_ROWS, CURVE_HELD_OUT = 200, 20


@dataclass(frozen=True)
class FitOptions:
    """How a fit is done, whatever is fitted.

    Parameters
    ----------
    device : torch.device
    use_bias : bool
        Fit an intercept; without it the outputs' means are left out, as fast_l1 does.
    partial_dir : Path, optional
        Where an interrupted pass over the rows leaves its sums.
    memory_limit : float, optional
        Bytes that may be used; by default most of what is free.
    with_curve : bool, optional
        Say how the held-out correlation grows with the rows, which takes another pass over them;
        by default where that is quick.
    quiet : bool
        Show no progress bars.
    say : callable
        Receives lines for people.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    use_bias: bool = True
    partial_dir: Path | None = None
    memory_limit: float | None = None
    with_curve: bool | None = None
    quiet: bool = False
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class _Fit:
    """A solver, the form of its problem, what it found on the training rows, and its scores."""

    solver: Solver
    form: str
    found: Attributions
    scores: HeldOut


def fit_and_score(
    source: RowSource, split: Split, solver: str | Solver = "auto", how: FitOptions | None = None
) -> Attributions:
    """Fit the training rows, score on the held-out ones, and fit both.

    Parameters
    ----------
    source : RowSource
    split : Split
        Positions in the source.
    solver : str or Solver
        Of :class:`Auto`'s candidates the one that predicts the held-out rows best is kept.
    how : FitOptions

    Returns
    -------
    Attributions
        With ``held_out`` scores and ``split``, where rows are held out.
    """
    if not source.num_targets:
        raise RegressionError(f"{source.description} has no targets, or none was chosen")
    how, solver = how or FitOptions(), _with_passes(solver_of(solver), source)
    held, auto = split.validation, isinstance(solver, Auto)
    if auto and len(held) < LEAST_TO_CHOOSE:
        raise RegressionError(
            f"solver auto chooses on held-out rows: hold out at least {LEAST_TO_CHOOSE}, not "
            f"{len(held)} of {len(held) + len(split.train)}; with fewer rows, name a solver"
        )
    plans = _plan(source, split, solver, how)
    pairs = any(plan.form == "primal" for _, plan in plans)
    train, folds = _summed(source, split.train, solver.num_folds, pairs, how)
    _report(train, source, how)
    if len(held) == 0:
        form = plans[0][1].form
        problem = problem_of(train, (source, split.train), form, how.device, folds=folds)
        return _finished(solve(solver, problem), (train.num_rows, 0), source, split, how)
    # What chose λ must not judge: auto's lasso chooses on one half, the other half judges.
    cut = len(held) // 2 if auto else len(held)
    choosing = _moments(source, held[:cut], "validation", pairs, how)
    judging = held[cut:] if auto else held
    rows = (source, split.train)
    problems = {
        form: problem_of(train, rows, form, how.device, validation=choosing, folds=folds)
        for form in {plan.form for _, plan in plans}
    }
    fits = []
    for candidate, plan in plans:
        found = solve(candidate, problems[plan.form])
        scores = score_rows(found.predict, source, judging)
        how.say(f"{candidate.name}: {found.summary['status']}")
        if auto:
            how.say(f"{candidate.name}: {scores}")
        fits.append(_Fit(candidate, plan.form, found, scores))
    best = max(fits, key=lambda fit: np.nan_to_num(fit.scores.mean, nan=-2.0))
    held_out = best.scores
    if auto:
        how.say(f"chosen on the held-out rows: {best.solver.name}")
        if "validation" not in best.solver.needs:  # no held-out row has been used to fit it
            held_out = score_rows(best.found.predict, source, held)
    how.say(str(held_out))
    validation = choosing
    if len(judging) and auto:
        validation = choosing + _moments(source, judging, "judging", pairs, how)
    both = (source, np.union1d(split.train, held))
    problems.clear()
    whole = problem_of(train + validation, both, best.form, how.device)
    final = solve(best.solver.refit(best.found), whole)
    final.held_out, final.path = held_out, best.found.path or final.path
    if auto:
        final.summary[COST] = replace(final.cost, prior=solver.prior_passes).as_json()
        final.summary["candidates"] = {fit.solver.name: fit.scores.mean for fit in fits}
    _add_curve(final, source, split, best.solver, how)
    return _finished(final, (train.num_rows, validation.num_rows), source, split, how)


def _with_passes(solver: Solver, source: RowSource) -> Solver:
    """Hand the gradient passes of a store, and the layers of its components, to who takes them."""
    if not isinstance(solver, Auto | Bayes) or solver.passes is not None:
        return solver
    read = getattr(source, "gradient_passes", None)
    passes = None if read is None else read()
    if passes is None:
        return solver
    table = getattr(source, "components", None)
    groups = solver.groups
    if groups is None and table is not None:
        groups = layers_of(table)
    return replace(solver, passes=passes, groups=groups)


def _plan(
    source: RowSource, split: Split, solver: Solver, how: FitOptions
) -> list[tuple[Solver, Prediction]]:
    """Return the solvers to try, each with the form of its problem; say what they will take."""
    counts = len(split.train), len(split.validation)
    size = Size(*counts, source.num_features, source.num_targets)
    candidates = solver.usable(size) if isinstance(solver, Auto) else [solver]
    plans, refusal = [], None
    for candidate in candidates:
        try:
            plans.append((candidate, choose_form(candidate, size, how.memory_limit, how.device)))
        except RegressionError as error:
            refusal = error
    if not plans:
        raise refusal or RegressionError("there is no solver to try")
    forms = " and ".join(sorted({plan.form for _, plan in plans}, reverse=True))
    most = max(plan.peak_bytes for _, plan in plans)
    total = Prediction(forms, most, sum(plan.seconds for _, plan in plans))
    how.say(f"solver {solver.name}, {forms} form, predicted: {total}")
    return plans


def _summed(
    source: RowSource, train: NDArray[np.int64], count: int, pairs: bool, how: FitOptions
) -> tuple[Moments, list[Moments]]:
    """Sum the training rows, in folds where those choose λ."""
    if count == 0:
        return _moments(source, train, "train", pairs, how), []
    if count > len(train):
        raise RegressionError(f"{len(train)} rows cannot be cut into {count} folds")
    parts = np.array_split(train, count)
    folds = [_moments(source, part, f"fold{i}", pairs, how) for i, part in enumerate(parts)]
    return reduce(add, folds), folds


def _moments(
    source: RowSource, positions: NDArray[np.int64], role: str, pairs: bool, how: FitOptions
) -> Moments:
    common: dict[str, Any] = {"device": how.device, "with_pairs": pairs, "quiet": how.quiet}
    if how.partial_dir is None:
        return Moments.from_rows(source, positions, **common)
    path = how.partial_dir / f"{role}.npz"
    return resumable_moments(source, positions, path, say=how.say, **common)


def _add_curve(
    result: Attributions, source: RowSource, split: Split, solver: Solver, how: FitOptions
) -> None:
    """Measure and report the learning curve of the solver."""
    train, held = split.train, split.validation
    size = Size(len(train), len(held), source.num_features, source.num_targets)
    work = size.rows * size.features * size.targets + POINTS * solver.work(size)
    quick = work <= QUICK_PRODUCTS and source.num_features <= QUICK_FEATURES
    enough = len(train) >= CURVE_ROWS and len(held) >= CURVE_HELD_OUT
    joined = isinstance(solver, Bayes) and how.with_curve is None
    if (
        joined
        or "rows" in solver.needs
        or not (how.with_curve or (how.with_curve is None and quick and enough))
    ):
        return
    curve = learning_curve(source, train, held, solver=solver, device=how.device)
    result.summary["learning_curve"] = curve.as_json()
    how.say(str(curve))


def _report(train: Moments, source: RowSource, how: FitOptions) -> None:
    how.say(
        f"{train.num_rows} rows, {train.num_features} features, {train.num_targets} targets "
        f"from {source.description}"
    )
    if train.num_excluded:
        how.say(f"left out {train.num_excluded} rows with NaN or infinite outputs")
    if (never := int(train.constant_features.sum())) > 0:
        how.say(f"{never} features never vary: their weights are 0")
    if (never := int(train.constant_targets.sum())) > 0:
        how.say(f"{never} targets never vary: their weights are 0, their scores NaN")


def _finished(
    result: Attributions, counts: tuple[int, int], source: RowSource, split: Split, how: FitOptions
) -> Attributions:
    trained, held = counts
    if not how.use_bias:
        result.bias = -(result.mean_mask @ result.weight.astype(np.float64))
    result.summary |= {
        "data": source.description,
        "rows_for_validation_fit": trained,
        "rows_held_out": held,
    }
    result.split = split.row_ids(source)
    result.components = getattr(source, "components", None)
    if identities := getattr(source, "identities", None):
        result.summary["task_identities"] = identities
    if result.cost.prior != 0:
        how.say(f"cost: {result.cost}")
    if held:
        how.say(
            f"final weights: fitted on all {trained + held} rows (the correlation above is that "
            f"of the fit on {trained})"
        )
    return result

"""Predictions on held-out rows to look at, and what more rows would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError, ReportError
from coarlib.regression.attributions import Attributions
from coarlib.regression.fit import fit
from coarlib.regression.heldout import HeldOut, score_arrays
from coarlib.regression.learning_curve import LearningCurve, learning_curve
from coarlib.regression.moments import Moments
from coarlib.regression.rows import RowSource, SomeTargets
from coarlib.regression.rows.blocks import read_blocks
from coarlib.regression.solvers import Lasso, LeastSquares, Ridge, Solver, solver_of
from coarlib.regression.split import Split

__all__ = ["Unseen", "look_ahead", "looked_at", "split_of"]

MOST_TARGETS, MOST_TARGETS_OF_LASSO = 1024, 128
MOST_FEATURES = 2500  # beyond, six eigendecompositions take minutes
FEWEST_ROWS = 32
POINTS = 5
ENDLESS = 4096  # times the rows: what no further row adds to
CERTAIN = 0.15
Z = 1.96
MOST_HELD_OUT = 1000
MOST_VALUES = 4 * 10**9


@dataclass(frozen=True)
class Unseen:
    """Predictions of some targets on held-out rows, and how they improve with rows.

    Attributes
    ----------
    targets : int64 [t]
        Which targets were looked at.
    num_rows : int
        Rows of the fit that predicts.
    masks : bool [K, N]
        Of the held-out rows.
    predicted, true : float32 [K, t]
        Held-out outputs, predicted and measured.
    scores : HeldOut
    curve : LearningCurve
    """

    targets: NDArray[np.int64]
    num_rows: int
    masks: NDArray[np.bool_]
    predicted: NDArray[np.float32]
    true: NDArray[np.float32]
    scores: HeldOut
    curve: LearningCurve

    @property
    def not_additive(self) -> float | None:
        """Share of the outputs' variance that no sum over features predicts, from endless rows.

        The mean over targets of 1 - r(∞)², r(∞) as the learning curve says; None where its 95%
        interval is wider than ± 0.15, or nothing is left.
        """
        found = self.curve
        r = self.scores.pearson[np.isfinite(self.scores.pearson)]
        if len(found.predicted) < 2 or not np.isfinite(found.predicted[-1]) or not r.size:
            return None
        now, top = float(found.correlation[-1]), float(found.predicted[-1])
        if now <= 0 or 2 * top * Z * float(found.gain_sd[-1]) > CERTAIN:
            return None
        share = 1 - float(np.mean(np.maximum(r, 0) ** 2)) * (top / now) ** 2
        return share if 0 < share < 1 else None

    @property
    def doubled(self) -> float | None:
        """Expected mean correlation with twice the rows, if that can be told."""
        found = self.curve.predicted
        return float(found[0]) if len(found) and np.isfinite(found[0]) else None


def split_of(attributions: Attributions | None, source: RowSource) -> Split | None:
    """Return which rows a fit used and which it held out, as saved with it.

    Without attributions, the last tenth of the rows is held out; where the fit held out none, the
    rows are that it did not use. None if there are none, or the source lacks rows of the fit.
    """
    rows = len(source.row_ids)
    order = np.arange(rows, dtype=np.int64)
    if attributions is None:
        held = rows // 10
        split: Split | None = Split(order[: rows - held], order[rows - held :])
    else:
        saved = attributions.split
        split = None if saved is None else saved.positions(source)
        if split is not None and len(split.validation) == 0:
            split = Split(split.train, np.setdiff1d(order, split.train))
    if split is None or len(split.validation) < 2 or len(split.train) < FEWEST_ROWS:
        return None
    return split


def own_solver(attributions: Attributions | None, targets: NDArray[np.int64]) -> Solver:
    """Return what fitted ``attributions``, for some of its targets; ridge where nothing is fitted.

    A λ that held-out rows have chosen, or that was given, is kept. What reads rows again in place
    of a matrix has the solution of the solver that does not. Guesses of the weights are not saved
    with a fit, so an informed prior is looked at without them, as a shared prior.

    Raises
    ------
    ReportError
        If the solver is not known here.
    """
    if attributions is None:
        return Ridge()
    name, lam = str(attributions.summary.get("solver")), attributions.lam[targets]
    if name == "conjugate_gradients":
        return Ridge(lam=lam) if lam.any() else LeastSquares()
    if name == "saga":
        return Lasso(lam=lam)
    try:
        solver = solver_of("shared_prior" if name == "informed_prior" else name)
    except RegressionError as error:
        raise ReportError(
            f"predictions are left out: the fit's own solver ({name}) is not known here"
        ) from error
    if "rows" in solver.needs:
        raise ReportError(f"predictions are left out: the fit's own solver ({name}) reads all rows")
    return solver.refit(attributions.targets(targets)) if "validation" in solver.needs else solver


def looked_at(attributions: Attributions | None, count: int) -> NDArray[np.int64]:
    """Return the targets to look at: all, or as many as take no minutes, evenly over the scores."""
    lasso = attributions is not None and attributions.summary.get("solver") in ("lasso", "saga")
    most = MOST_TARGETS_OF_LASSO if lasso else MOST_TARGETS
    held = None if attributions is None else attributions.held_out
    order = np.arange(count) if held is None else np.argsort(held.pearson, kind="stable")
    if count <= most:
        return np.arange(count, dtype=np.int64)
    places = np.linspace(0, count - 1, most).round().astype(np.int64)
    return np.sort(order[places]).astype(np.int64)


def look_ahead(
    source: RowSource,
    split: Split,
    targets: NDArray[np.int64],
    attributions: Attributions | None = None,
) -> Unseen:
    """Fit growing parts of the training rows, by the solver that the fit used.

    Parameters
    ----------
    source : RowSource
    split : Split
    targets : int64 [t]
        Which targets to look at.
    attributions : Attributions, optional
        The fit.

    Raises
    ------
    ReportError
        If it would take too long; the message says why.
    """
    train, validation = split.train, split.validation[:MOST_HELD_OUT]
    values = len(train) * (source.num_features + source.num_targets)
    if source.num_features > MOST_FEATURES or values > MOST_VALUES:
        raise ReportError(
            f"fits on growing numbers of rows are left out: {source.num_features:,} features, "
            f"{source.num_targets:,} targets and {len(train):,} rows would take minutes (limits: "
            f"{MOST_FEATURES:,} features, {MOST_VALUES:,} values)"
        )
    some = SomeTargets(source, targets)
    solver = own_solver(attributions, targets)
    options: dict[str, Any] = {"points": POINTS, "multiples": (2, ENDLESS)}
    curve = learning_curve(some, train, validation, solver=solver, **options)
    fitted = fit(Moments.from_rows(some, train), solver)
    blocks = list(read_blocks(some, validation))
    masks = np.concatenate([block for _, block, _ in blocks])
    true = np.concatenate([outputs for _, _, outputs in blocks]).astype(np.float32)
    predicted = fitted.predict(masks)
    scores = score_arrays(predicted, true)
    return Unseen(targets, len(train), masks, predicted, true, scores, curve)

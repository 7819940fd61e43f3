"""One door to the solvers: rows, or their moments, in; attributions out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.fit_and_score import FitOptions
from coarlib.regression.moments import Moments
from coarlib.regression.nonfinite import fit_finite
from coarlib.regression.problems import Rows, problem_of, solve
from coarlib.regression.rows import ArrayRows, RowSource
from coarlib.regression.solvers import Auto, Ridge, Solver, solver_of
from coarlib.regression.split import split_rows

__all__ = ["default_held_out", "fit"]

HELD_OUT_SHARE, LEAST_HELD_OUT = 0.1, 20


def fit(
    data: Moments | RowSource | tuple[NDArray[Any], NDArray[Any]],
    solver: str | Solver = "auto",
    *,
    held_out: int | None = None,
    seed: int | None = None,
    validation: Moments | None = None,
    rows: Rows | None = None,
    device: torch.device | str = "cpu",
    nonfinite: str = "rows",
    **options: Any,
) -> Attributions:
    """Fit attributions.

    Parameters
    ----------
    data : RowSource, (masks bool [K, N], outputs real [K, T]), or Moments
        Rows are split: some are held out for the scores, and the weights come from all. Moments
        are fitted as they are.
    solver : str or Solver
        A name in :data:`~coarlib.regression.solvers.SOLVERS`, with its options as further
        arguments, or an instance, as ``Ridge(lam=0.1)``. ``"auto"`` keeps of several what predicts
        the held-out rows best; for moments, which have none, it is ridge.
    held_out : int, optional
        How many rows to hold out; by default a tenth of them, at least 20, at most half.
    seed : int, optional
        Draws which rows are held out; by default the last ones.
    validation : Moments, optional
        For moments: other rows, where they choose λ (a lasso path).
    rows : (RowSource, int64 [K]), optional
        For moments: the rows that they sum, which some solvers read again.
    device : torch.device or str
    nonfinite : "rows", "targets" or "alone"
        What is left out where outputs are NaN or infinite: the row for every target, the target,
        or the row for that target alone (:func:`~coarlib.regression.nonfinite.fit_finite`).
    **options
        Options of the solver, where it is given by name.

    Returns
    -------
    Attributions

    Raises
    ------
    RegressionError
        For an unknown solver or option, or too few rows.
    """
    chosen = solver_of(solver, **options)
    if isinstance(data, Moments):
        if held_out is not None or seed is not None:
            raise RegressionError("moments cannot be split: give rows to hold some of them out")
        if isinstance(chosen, Auto):
            chosen = Ridge()
        form = "primal" if data.pairs is not None else "dual"
        form = "stream" if "rows" in chosen.needs else form
        return solve(chosen, problem_of(data, rows, form, device, validation=validation))
    if validation is not None or rows is not None:
        raise RegressionError("validation and rows go with moments; rows are split with held_out")
    if isinstance(data, tuple):
        masks, outputs = data
        data = ArrayRows(np.asarray(masks), np.asarray(outputs))
    count = len(data.row_ids)
    held = default_held_out(count) if held_out is None else held_out
    split = split_rows(data, count - held, held, seed)
    how = FitOptions(device=torch.device(device), quiet=True, say=_silent)
    return fit_finite(data, split, chosen, how, nonfinite)


def default_held_out(num_rows: int) -> int:
    """Return how many rows are held out unless another number is asked for."""
    return min(max(round(HELD_OUT_SHARE * num_rows), LEAST_HELD_OUT), num_rows // 2)


def _silent(line: str) -> None:
    """Say nothing."""

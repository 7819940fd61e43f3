"""The whole fit of one data set: split the rows, fit, score on held-out rows, fit on all of them.

As upstream, the first ``num_train`` completed rows fit, the next ``num_val`` are held out for the
scores (and for choosing λ), and the weights that are kept come from both together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.fit import fit
from coarlib.regression.heldout import score_rows
from coarlib.regression.moments import Moments
from coarlib.regression.rows import RowSource

__all__ = ["Experiment", "Split", "solver_for", "split_rows"]

ROWS_A_FEATURE = 3  # below this, plain least squares predicts poorly


@dataclass(frozen=True)
class Split:
    """Positions of the rows to fit and to hold out, ascending int64."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def split_rows(source: RowSource, num_train: int, num_val: int, seed: int | None = None) -> Split:
    """Choose the rows to fit and to hold out.

    Parameters
    ----------
    source : RowSource
    num_train, num_val : int
        The first ``num_train`` completed rows, and the ``num_val`` after them.
    seed : int, optional
        Shuffles which of those ``num_train + num_val`` rows are held out.

    Raises
    ------
    RegressionError
        If there are fewer completed rows, or no row to fit.
    """
    if num_train < 1 or num_val < 0:
        raise RegressionError(
            f"num_train must be at least 1 and num_val at least 0, not {num_train} and {num_val}"
        )
    available, wanted = len(source.row_ids), num_train + num_val
    if available < wanted:
        raise RegressionError(
            f"{source.description} has {available} completed rows, but num_train + num_val = "
            f"{num_train} + {num_val} = {wanted} are asked for; fill the missing rows or lower "
            "--data.num_train or --data.num_val"
        )
    order = np.arange(wanted, dtype=np.int64)
    if seed is not None:
        order = np.random.Generator(np.random.Philox(seed)).permutation(order)
    return Split(np.sort(order[:num_train]), np.sort(order[num_train:]))


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
            "(--cfg.solver chooses another)",
            stacklevel=2,
        )
        return "ridge"
    if num_rows < ROWS_A_FEATURE * num_features:
        warnings.warn(
            f"least squares (manual_max_lambda: 0) on {num_rows} rows for {num_features} features "
            "is noisy; --cfg.solver auto usually predicts better",
            stacklevel=2,
        )
    return "least_squares"


@dataclass
class Experiment:
    """A fit with held-out scores.

    Parameters
    ----------
    source : RowSource
    split : Split
    solver : str
    options : dict
        Arguments of the solver.
    device : torch.device
    use_bias : bool
        Fit an intercept; without it the outputs' means are left out, as fast_l1 does.
    say : callable
        Receives a line of progress for people.
    """

    source: RowSource
    split: Split
    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    use_bias: bool = True
    quiet: bool = False
    say: Callable[[str], None] = print

    def run(self) -> Attributions:
        """Fit on the training rows, score on the held-out ones, and fit on both."""
        train = self._moments(self.split.train)
        self._report(train)
        if len(self.split.validation) == 0:
            return self._finished(self._fit(train), train.num_rows, 0)
        validation = self._moments(self.split.validation)
        fitted = self._fit(train)
        self.say(fitted.summary["status"])
        held_out = score_rows(fitted.predict, self.source, self.split.validation)
        self.say(str(held_out))
        final = self._fit(train + validation)
        final.held_out = held_out
        return self._finished(final, train.num_rows, validation.num_rows)

    def _moments(self, positions: NDArray[np.int64]) -> Moments:
        return Moments.from_rows(self.source, positions, device=self.device, quiet=self.quiet)

    def _fit(self, moments: Moments) -> Attributions:
        result = fit(moments, self.solver, device=self.device, **self.options)
        if not self.use_bias:
            result.bias = result.bias - moments.mean_output
        return result

    def _report(self, train: Moments) -> None:
        self.say(
            f"{train.num_rows} rows, {train.num_features} features, {train.num_targets} targets "
            f"from {self.source.description}"
        )
        if train.num_excluded:
            self.say(f"left out {train.num_excluded} rows with NaN or infinite outputs")
        if (never := int(train.constant_features.sum())) > 0:
            self.say(f"{never} features never vary: their weights are 0")
        if (never := int(train.constant_targets.sum())) > 0:
            self.say(f"{never} targets never vary: their weights are 0, their scores NaN")

    def _finished(self, result: Attributions, train: int, validation: int) -> Attributions:
        result.summary |= {
            "data": self.source.description,
            "rows_for_validation_fit": train,
            "rows_held_out": validation,
        }
        if validation:
            self.say(
                f"final weights: fitted on all {train + validation} rows (the correlation above "
                f"is that of the fit on {train})"
            )
        return result

"""The whole fit of one data set: split the rows, fit, score on held-out rows, fit on all of them.

As upstream, the first ``num_train`` completed rows fit, the next ``num_val`` are held out for the
scores (and for choosing λ), and the weights that are kept come from both together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError, nearest
from coarlib.regression.attributions import Attributions
from coarlib.regression.budget import Prediction, Size, choose_form
from coarlib.regression.dual import finite_masks
from coarlib.regression.fit import (
    NEED_SCORES,
    SHARE_PRIOR,
    SOLVERS,
    USE_VALIDATION,
    fit,
    prior_of_moments,
)
from coarlib.regression.heldout import HeldOut, score_rows
from coarlib.regression.learning_curve import learning_curve
from coarlib.regression.moments import Moments
from coarlib.regression.moments.checkpoint import resumable_moments
from coarlib.regression.rows import RowSource
from coarlib.regression.split import Split

__all__ = ["AUTO", "Experiment", "solver_for"]

AUTO = "auto"
CANDIDATES = ("ridge", "shared_prior", "tempered_prior", "lasso")
LEAST_TO_CHOOSE = 4
# A learning curve is shown by itself where it is quick and there are rows to tell it from noise.
QUICK_PRODUCTS, QUICK_FEATURES = 5e10, 1024
CURVE_ROWS, CURVE_HELD_OUT = 200, 20
ROWS_A_FEATURE = 3  # below this, plain least squares predicts poorly


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
        One of ``SOLVERS``, or ``"auto"``: of ridge, shared prior, tempered prior, lasso and (with
        scores among its options) informed prior the one that predicts the held-out rows best.
    options : dict of solver name to its arguments
    device : torch.device
    use_bias : bool
        Fit an intercept; without it the outputs' means are left out, as fast_l1 does.
    partial_dir : Path, optional
        Where an interrupted pass over the rows leaves its sums.
    memory_limit : float, optional
        Bytes that may be used; by default most of what is free.
    folds : int, optional
        Choose ridge's λ by so many folds of the training rows instead of by GCV.
    with_curve : bool, optional
        Say how the held-out correlation grows with the rows, which takes another pass over them;
        by default where that is quick.
    quiet : bool
        Show no progress bars.
    say : callable
        Receives lines for people.
    """

    source: RowSource
    split: Split
    solver: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    use_bias: bool = True
    partial_dir: Path | None = None
    memory_limit: float | None = None
    folds: int | None = None
    with_curve: bool | None = None
    quiet: bool = False
    say: Callable[[str], None] = print

    def run(self) -> Attributions:
        """Fit on the training rows, score on the held-out ones, and fit on both."""
        if self.solver not in (*SOLVERS, AUTO):
            known = (*SOLVERS, AUTO)
            raise RegressionError(
                f"unknown solver {self.solver!r}{nearest(self.solver, known)} "
                f"(there are {', '.join(known)})"
            )
        held = self.split.validation
        if self.solver == AUTO and len(held) < LEAST_TO_CHOOSE:
            raise RegressionError(
                f"solver auto chooses on held-out rows; set --data.num_val to at least "
                f"{LEAST_TO_CHOOSE}"
            )
        self._form = self._plan().form
        train = self._train_moments()
        self._report(train)
        if len(held) == 0:
            return self._finished(self._fit(self.solver, train, self.split.train), train, None)
        # What chose λ must not judge: auto's lasso chooses on one half, the other half judges.
        cut = len(held) // 2 if self.solver == AUTO else len(held)
        choosing = self._moments(held[:cut], "validation")
        validation = choosing
        if cut < len(held):
            validation = choosing + self._moments(held[cut:], "judging")
        judging = held[cut:] if cut < len(held) else held
        solver, fitted, held_out, scores = self._best(train, choosing, judging)
        both = np.union1d(self.split.train, held)
        lam: dict[str, Any] = {}
        if solver in USE_VALIDATION:
            lam = {"lam": fitted.lam, "start": fitted.weight}
        elif solver == "ridge" and self.folds is not None:
            lam = {"lam": float(fitted.lam[0])}
        final = self._fit(solver, train + validation, both, **lam)
        final.held_out = held_out
        final.path = fitted.path or final.path
        if self.solver == AUTO:
            final.summary["candidates"] = scores
        self._add_curve(final, solver)
        return self._finished(final, train, validation)

    def _plan(self) -> Prediction:
        rows, held = len(self.split.train), len(self.split.validation)
        size = Size(rows, held, self.source.num_features, self.source.num_targets)
        plan = choose_form(self.solver, size, self.memory_limit, self.device)
        self.say(f"solver {self.solver}, {plan.form} form, predicted: {plan}")
        return plan

    def _train_moments(self) -> Moments:
        """Sum the training rows, in folds where those choose λ."""
        if self.folds is None:
            return self._moments(self.split.train, "train")
        if not 2 <= self.folds <= len(self.split.train) or self._form != "primal":
            raise RegressionError(
                f"{self.folds} folds of {len(self.split.train)} rows ({self._form} form) cannot "
                "choose λ; at least 2 folds, of at least one row each, in the primal form"
            )
        parts = np.array_split(self.split.train, self.folds)
        sums = [self._moments(part, f"fold{i}") for i, part in enumerate(parts)]
        self.options = self.options | {
            "ridge": {"choose": "folds", "folds": sums} | self.options.get("ridge", {})
        }
        return reduce(add, sums)

    def _moments(self, positions: NDArray[np.int64], role: str) -> Moments:
        common: dict[str, Any] = {
            "device": self.device,
            "with_pairs": self._form == "primal",
            "quiet": self.quiet,
        }
        if self.partial_dir is None:
            return Moments.from_rows(self.source, positions, **common)
        path = self.partial_dir / f"{role}.npz"
        return resumable_moments(self.source, positions, path, say=self.say, **common)

    def _candidates(self) -> list[str]:
        if self.solver != AUTO:
            return [self.solver]
        informed = [name for name in NEED_SCORES if "scores" in self.options.get(name, {})]
        every = (*CANDIDATES, *informed)
        return [name for name in every if not (self._form == "dual" and name == "lasso")]

    def _best(
        self, train: Moments, choosing: Moments, judging: NDArray[np.int64]
    ) -> tuple[str, Attributions, HeldOut, dict[str, float]]:
        """Fit every candidate on the training rows; return the one that predicts best.

        ``choosing`` are moments of the rows that choose λ, ``judging`` positions of those that
        compare the candidates.
        """
        found: list[tuple[str, Attributions, HeldOut]] = []
        learnt = self._learnt_prior(train)
        for name in self._candidates():
            use = learnt.get(name, {})
            if name in USE_VALIDATION:
                use = {"validation": choosing}
            fitted = self._fit(name, train, self.split.train, **use)
            held_out = score_rows(fitted.predict, self.source, judging)
            self.say(f"{name}: {fitted.summary['status']}")
            found.append((name, fitted, held_out))
            if self.solver == AUTO:
                self.say(f"{name}: {held_out}")
        scores = {name: held_out.mean for name, _, held_out in found}
        name, fitted, held_out = max(found, key=lambda f: np.nan_to_num(f[2].mean, nan=-2.0))
        if self.solver == AUTO:
            self.say(f"chosen on the held-out rows: {name}")
            if name not in USE_VALIDATION:  # no held-out row has been used to fit it
                held_out = score_rows(fitted.predict, self.source, self.split.validation)
        self.say(str(held_out))
        return name, fitted, held_out, scores

    def _learnt_prior(self, train: Moments) -> dict[str, dict[str, Any]]:
        """Learn the prior that several candidates use, once; what to pass to each of them.

        Nothing where there is one such candidate or their options differ: they learn their own.
        """
        users = [n for n in self._candidates() if n in SHARE_PRIOR and not self.options.get(n)]
        if len(users) < 2:
            return {}
        masks = finite_masks(self.source, self.split.train) if self._form == "dual" else None
        prior = prior_of_moments(train, masks=masks, device=self.device)
        return {name: {"prior": prior} for name in users}

    def _fit(
        self, solver: str, moments: Moments, positions: NDArray[np.int64], **extra: Any
    ) -> Attributions:
        options = self.options.get(solver, {}) | extra
        if "lam" in extra or "lam" in options:
            chosen = ("validation", "choose", "folds")
            options = {key: value for key, value in options.items() if key not in chosen}
        if self._form == "dual":
            options["masks"] = finite_masks(self.source, positions)
        if self._form == "stream":
            options["rows"] = (self.source, positions)
        result = fit(moments, solver, device=self.device, **options)
        if not self.use_bias:
            result.bias = result.bias - moments.mean_output
        return result

    def _add_curve(self, result: Attributions, solver: str) -> None:
        """Measure and report the learning curve, of ridge where the solver needs held-out rows."""
        train, held = self.split.train, self.split.validation
        work = len(train) * self.source.num_features * self.source.num_targets
        quick = work <= QUICK_PRODUCTS and self.source.num_features <= QUICK_FEATURES
        enough = len(train) >= CURVE_ROWS and len(held) >= CURVE_HELD_OUT
        if self._form != "primal" or not (
            self.with_curve or (self.with_curve is None and quick and enough)
        ):
            return
        name = "ridge" if solver in USE_VALIDATION else solver
        options = self.options.get(name, {}) if name in NEED_SCORES else {}
        curve = learning_curve(
            self.source, train, held, solver=name, options=options, device=self.device
        )
        result.summary["learning_curve"] = curve.as_json()
        self.say(str(curve))

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

    def _finished(
        self, result: Attributions, train: Moments, validation: Moments | None
    ) -> Attributions:
        held = 0 if validation is None else validation.num_rows
        result.summary |= {
            "data": self.source.description,
            "rows_for_validation_fit": train.num_rows,
            "rows_held_out": held,
        }
        result.split = self.split.row_ids(self.source)
        result.components = getattr(self.source, "components", None)
        if held:
            self.say(
                f"final weights: fitted on all {train.num_rows + held} rows (the correlation "
                f"above is that of the fit on {train.num_rows})"
            )
        return result

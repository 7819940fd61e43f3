"""Fit attributions from a store or a .beton file, and score them on held-out rows.

    coar run_regression STORE
    coar run_regression STORE --out OUT --solver ridge --held_out 0.2
    coar run_regression X.beton --config cifar_resnet/regression_config.yaml

Without --solver, several are tried and what predicts the held-out rows best is kept (auto): ridge,
shared and tempered prior, lasso; with --prior_scores (from coar gradient_scores) informed_prior,
and where the store has gradient passes bayes.
Upstream's configuration files are accepted as they are and mean what they meant:
`manual_max_lambda: 0` with `k: 1` is least squares, `-1` a lasso path of k λ.
Weights are saved in raw mask units (the effect of keeping a component). The first rows are fitted,
the last ones score the fit, and the saved weights come from both. An interrupted run resumes when
it is started again.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coarlib.cluster.fit_plan import plan_fit
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.checkers import Choice, ChoiceOrClass
from coarlib.commands.choose_solver import FAST_L1, check_fast_l1, solver_from
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, RegressionError
from coarlib.interop.fast_l1 import fit_with_fast_l1
from coarlib.regression.attributions import DATAMODELS, Attributions
from coarlib.regression.budget import choose_form
from coarlib.regression.fit import default_held_out
from coarlib.regression.fit_and_score import FitOptions
from coarlib.regression.moments.checkpoint import PARTIAL, discard_partial
from coarlib.regression.nonfinite import NONFINITE_ROWS, fit_finite
from coarlib.regression.rows import RowSource, open_rows, verified_note
from coarlib.regression.solvers import SOLVERS, Size, Solver
from coarlib.regression.split import Split, split_rows
from coarlib.regression.surrogate import SURROGATE, surrogate_and_score

ROWS = {
    "store": common.store("a store directory or a .beton of write_dataset", "data.data_path"),
    "held_out": Param(float, "share of the rows that score the fit; default: a tenth, 20 to half"),
    "num_train": Param(Whole(), "rows to fit, instead of --held_out", also=("data.num_train",)),
    "num_val": Param(
        Whole(), "rows after them, held out for the scores", also=("data.num_val",)
    ),
    "seed": common.seed(
        "shuffle which of these rows are held out; without it, the last ones",
        "data.seed",
        default=None,
    ),
    "targets": Param(common.Range(), "targets to fit: A:B, or N for 0:N"),
    "target_start_ind": Param(
        Whole(), "first target to fit", default=0, also=("data.target_start_ind",)
    ),
    "target_end_ind": Param(
        Whole(),
        "one past the last target to fit; -1 = all",
        default=-1,
        also=("data.target_end_ind",),
    ),
    "x_name": common.x_name("data.x_name"),
    "y_name": common.y_name("data.y_name"),
    "verify": common.flag(
        "compare the rows with their checksums first", "data.verify", default=True
    ),
}  # fmt: skip
SOLVING = {
    "out": common.out(
        "where to write the result, never overwritten; default: beside the store", "cfg.out_dir"
    ),
    "solver": Param(
        ChoiceOrClass(ChainMap[str, Any]({FAST_L1: None}, SOLVERS)),
        f"{', '.join((*SOLVERS, FAST_L1))}; or file.py:Class; default: see above",
        also=("cfg.solver",),
    ),
    "k": Param(Whole(), "number of λ on the lasso path", default=1, also=("cfg.k",)),
    "manual_max_lambda": Param(
        float,
        "largest λ; 0 = least squares, -1 = auto",
        default=-1.0,
        also=("cfg.manual_max_lambda",),
    ),
    "eps": Param(
        float,
        "smallest λ of the path, relative to the largest",
        default=1e-5,
        also=("cfg.eps",),
    ),
    "lam": Param(
        float, "λ of ridge or lasso, standardised units; default: by the data", also=("cfg.lam",)
    ),
    "prior_scores": Param(
        str, "guesses of the weights for informed_prior and auto", also=("cfg.prior_scores",)
    ),
    "prior_passes": Param(
        Whole(), "what these cost, in forward passes over the examples, if their file says nothing"
    ),
    "folds": Param(
        Whole(), "choose ridge's λ by so many folds instead of GCV", also=("cfg.folds",)
    ),
    "l1_ratio": Param(
        float, "1 = lasso, less = elastic net", default=1.0, also=("cfg.l1_ratio",)
    ),
    "positive": common.flag("lasso with weights ≥ 0", "cfg.positive"),
    "tol": Param(
        float, "largest relative duality gap of the lasso", default=1e-6, also=("cfg.tol",)
    ),
    "memory_gb": Param(
        float, "memory that may be used; default: most of what is free", also=("cfg.memory_gb",)
    ),
    "use_bias": common.flag("fit an intercept", "cfg.use_bias", default=True),
    "device": common.device("cfg.device"),
    "nonfinite": Param(
        Choice(NONFINITE_ROWS),
        "where outputs are NaN or infinite, leave out the row, the target, or the row for that "
        "target alone",
        default="rows",
    ),
    "learning_curve": Param(
        common.Boolean(),
        "say what more rows would bring (default: if quick)",
        also=("cfg.learning_curve",),
    ),
    "lr": Param(
        float, "step size of streaming solvers; others need none", default=0.01, also=("cfg.lr",)
    ),
    "batch_size": Param(
        Whole(),
        "batch of streaming solvers; need not divide the rows",
        also=("cfg.batch_size",),
    ),
    "num_workers": Param(
        Whole(),
        "accepted; reading needs no worker processes",
        default=16,
        also=("cfg.num_workers",),
    ),
    "check_every": Param(
        Whole(),
        "epochs between checks of streaming solvers",
        default=2,
        also=("early_stopping.check_every",),
    ),
    "stop_eps": Param(
        float,
        "largest step at which streaming solvers stop",
        default=1e-5,
        also=("early_stopping.eps",),
    ),
}  # fmt: skip
IGNORED = {
    "cfg.true_random": "rows are summed, so their order does not matter",
    "cfg.train_mode": "every row is used for every target",
}
COMMAND = Command(
    "run_regression",
    __doc__,
    {
        "store": ROWS["store"],
        "out": SOLVING["out"],
        "solver": SOLVING["solver"],
        **ROWS,
        **SOLVING,
        "surrogate": common.flag("fit a predictor with interactions of all orders, too"),
        "plan": Param(
            Whole(2), "say what goes where and how long if it is cut into so many jobs, and stop"
        ),
        "dry_run": common.flag("say what would be fitted and how large it is, and stop"),
    },
    IGNORED,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, score and save."""
    fit(COMMAND.parse(argv))


def fit(args: Arguments) -> None:
    """Fit, score and save as the arguments say."""
    out_dir = out_of(args)
    source, split = rows_of(args)
    solver = None
    if args.solver == FAST_L1:
        check_fast_l1(args)
        if args.nonfinite != "rows":
            raise ArgumentError(
                f"--nonfinite {args.nonfinite} goes with other solvers than fast_l1"
            )
    else:
        size = len(split.train), source.num_features
        solver = solver_from(args, *size, target_range(args))
    if getattr(args, "plan", None) is not None:
        print(_plan(args, source, split, solver))
        return
    if getattr(args, "dry_run", False):
        print(
            f"{len(split.train)} rows of {args.store} would be fitted and {len(split.validation)} "
            f"would score the fit: {source.num_features} features × {source.num_targets} targets, "
            f"to {out_dir}"
        )
        print(again(args))
        return
    if args.verify:
        print(verified_note(source, np.union1d(split.train, split.validation)))
    if solver is None:
        attributions = with_fast_l1(args, source, split)
    else:
        how = fit_options(args, out_dir)
        attributions = fit_finite(source, split, solver, how, args.nonfinite)
    attributions.summary |= {"seed": args.seed, "use_bias": args.use_bias}
    if getattr(args, "surrogate", False):
        made, scores = surrogate_and_score(source, split)
        share = float(np.mean(made.not_linear()))
        held = None if scores is None else scores.mean
        attributions.summary["surrogate"] = {"mean_pearson": held, "share_not_linear": share}
        print(f"surrogate of all orders: {scores or 'not scored'}")
        print(f"of what it predicts, {share:.1%} of the variance is not linear")
    attributions.save(out_dir)
    if getattr(args, "surrogate", False):
        made.save(out_dir / SURROGATE)
    keep_arguments(args, out_dir)
    discard_partial(out_dir)
    print(
        f"saved {out_dir / DATAMODELS} ({attributions.num_features} × {attributions.num_targets})"
    )
    print(next_step("report", out_dir))


def _plan(args: Arguments, source: RowSource, split: Split, solver: Solver | None) -> str:
    """Return what goes where, the quickest way first."""
    if solver is None:
        raise ArgumentError("--plan goes with other solvers than fast_l1")
    size = Size(len(split.train), len(split.validation), source.num_features, source.num_targets)
    size = replace(size, form=choose_form(solver, size, math.inf).form)
    words = again(args, plan=None).split("run_regression ", 1)[1]
    ways = plan_fit(solver, size, args.plan, words)
    return "\n".join(map(str, ways))


def rows_of(args: Arguments) -> tuple[RowSource, Split]:
    """Open the rows that the arguments name, and split them in fitted and held-out ones."""
    targets = target_range(args)
    source = open_rows(args.store, args.x_name, args.y_name, targets)
    start = targets.start or 0
    if not source.num_targets or source.num_targets < (targets.stop or 0) - start:
        there = start + source.num_targets if source.num_targets else "fewer"
        raise RegressionError(
            f"targets {start}:{'' if targets.stop is None else targets.stop} are not all in "
            f"{source.description}, which has {there} targets"
        )
    total = len(source.row_ids)
    train, held = args.num_train, args.num_val
    if args.held_out is not None and not 0 < args.held_out < 1:
        raise RegressionError(f"--held_out must be between 0 and 1, not {args.held_out:g}")
    if args.held_out is not None and not (train is None and held is None):
        raise RegressionError("give either --held_out or --num_train and --num_val, not both")
    if train is None and held is None:
        share = args.held_out
        held = default_held_out(total) if share is None else max(2, round(share * total))
    train = total - held if train is None else train
    held = total - train if held is None else held
    return source, split_rows(source, train, held, args.seed)


def out_of(args: Arguments) -> Path:
    """Return where the result goes; RegressionError if something is there already."""
    args.out = str(args.out or common.beside(args.store, "attributions"))
    check_out_dir(Path(args.out))
    return Path(args.out)


def fit_options(args: Arguments, out_dir: Path) -> FitOptions:
    """Return how the arguments want the fit done."""
    limit = args.memory_gb
    return FitOptions(
        device=resolve_device(args.device),
        use_bias=args.use_bias,
        partial_dir=out_dir / PARTIAL,
        memory_limit=None if limit is None else limit * 1e9,
        with_curve=args.learning_curve,
    )


def with_fast_l1(args: Arguments, source: RowSource, split: Split) -> Attributions:
    """Run the installed fast_l1 (CUDA only) with upstream's settings."""
    return fit_with_fast_l1(
        source,
        split.train,
        split.validation,
        lr=args.lr,
        num_lambdas=args.k,
        eps=args.eps,
        max_lambda=args.manual_max_lambda,
        batch_size=args.batch_size or len(split.train),
        check_every=args.check_every,
        stop_eps=args.stop_eps,
        use_bias=args.use_bias,
        device=resolve_device(args.device),
    )


def check_out_dir(path: Path) -> None:
    """RegressionError if ``path`` holds anything but an interrupted run: nothing is overwritten."""
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {PARTIAL}):
        raise RegressionError(
            f"{path} already exists; give another directory (--out) or move it away"
        )


def target_range(args: Arguments) -> slice:
    """Return the targets to fit as a slice; RegressionError if the range makes no sense."""
    if args.targets is not None:
        if {"target_start_ind", "target_end_ind"} & args.given:
            raise RegressionError("--targets takes the place of --target_start_ind and _end_ind")
        return common.slice_of(args.targets)
    start, end = args.target_start_ind, args.target_end_ind
    if start < 0 or (end != -1 and end <= start):
        raise RegressionError(
            f"--target_start_ind {start} and --target_end_ind {end} name no targets"
        )
    return slice(start, None if end == -1 else end)


if __name__ == "__main__":
    run(main)

"""Fit attributions from a store or a .beton file, and score them on held-out rows.

python -m run_regression --config cifar_resnet/regression_config.yaml
    --data.data_path X.beton|STORE --cfg.out_dir OUT

Upstream's configuration files are accepted as they are. Without --cfg.solver, what they mean is
done: `manual_max_lambda: 0` with `k: 1` is least squares, `-1` a lasso path of k λ. `--cfg.solver
auto` tries ridge, shared-prior ridge and lasso and keeps what predicts the held-out rows best; with
--cfg.prior_scores (from coar gradient_scores) also ridge towards these.
Weights are saved in raw mask units (the effect of keeping a component). The first num_train
completed rows are fitted, the next num_val score the fit, and the saved weights come from both.
An interrupted run resumes when it is started again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.devices import resolve_device
from coarlib.errors import RegressionError
from coarlib.interop.fast_l1 import fit_with_fast_l1
from coarlib.regression.attributions import DATAMODELS, Attributions
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.moments.checkpoint import PARTIAL, discard_partial
from coarlib.regression.rows import RowSource, open_rows, verified_note
from coarlib.regression.solvers import SOLVERS, Solver, solver_of
from coarlib.regression.solvers.prior import load_scores
from coarlib.regression.split import Split, split_rows

FAST_L1 = "fast_l1"
ROWS_A_FEATURE = 3  # below this, plain least squares predicts poorly
SECTIONS = {
    "data": {
        "data_path": Param(str, "a store directory or a .beton of write_dataset", required=True),
        "num_train": Param(int, "rows to fit", required=True),
        "num_val": Param(int, "rows after them, held out for the scores", required=True),
        "seed": Param(
            Whole(0), "shuffle which of these rows are held out; without it, the last ones"
        ),
        "target_start_ind": Param(int, "first target to fit", default=0),
        "target_end_ind": Param(int, "one past the last target to fit; -1 = all", default=-1),
        "x_name": Param(str, "the mask array of a store (default: the design's)"),
        "y_name": Param(str, "the output array of a store (default: the only real-valued one)"),
        "verify": Param(Boolean(), "compare the rows with their checksums first", default=True),
    },
    "cfg": {
        "out_dir": Param(str, "where to write the result; never overwritten", required=True),
        "solver": Param(str, f"{', '.join((*SOLVERS, FAST_L1))}; default: see above"),
        "k": Param(int, "number of λ on the lasso path", required=True),
        "manual_max_lambda": Param(float, "largest λ; 0 = least squares, -1 = auto", default=-1.0),
        "eps": Param(float, "smallest λ of the path, relative to the largest", default=1e-5),
        "lam": Param(float, "λ of ridge or lasso, standardised units; default: by the data"),
        "prior_scores": Param(str, "guesses of the weights for informed_prior and auto"),
        "folds": Param(int, "choose ridge's λ by so many folds instead of GCV"),
        "l1_ratio": Param(float, "1 = lasso, less = elastic net", default=1.0),
        "positive": Param(Boolean(), "lasso with weights ≥ 0", default=False),
        "tol": Param(float, "largest relative duality gap of the lasso", default=1e-6),
        "memory_gb": Param(float, "memory that may be used; default: most of what is free"),
        "use_bias": Param(Boolean(), "fit an intercept", default=True),
        "device": Param(str, "auto, cpu, cuda, cuda:1 …", default="auto"),
        "learning_curve": Param(Boolean(), "say what more rows would bring (default: if quick)"),
        "lr": Param(float, "step size of streaming solvers; others need none", default=0.01),
        "batch_size": Param(int, "batch of streaming solvers; need not divide the rows"),
        "num_workers": Param(int, "accepted; reading needs no worker processes", default=16),
    },
    "early_stopping": {
        "check_every": Param(int, "epochs between checks of streaming solvers", default=2),
        "eps": Param(float, "largest step at which streaming solvers stop", default=1e-5),
    },
}
IGNORED = {"cfg.true_random": "rows are summed, so their order does not matter"}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, score and save."""
    args = parse(__doc__ or "", SECTIONS, argv, ignored=IGNORED)
    out_dir = Path(args.cfg.out_dir)
    check_out_dir(out_dir)
    source = open_rows(
        args.data.data_path, args.data.x_name, args.data.y_name, target_range(args.data)
    )
    split = split_rows(source, args.data.num_train, args.data.num_val, args.data.seed)
    if source.num_targets == 0:
        raise RegressionError(
            f"the target range {args.data.target_start_ind} to {args.data.target_end_ind} is empty"
        )
    if args.data.verify:
        print(verified_note(source, np.union1d(split.train, split.validation)))
    if args.cfg.solver == FAST_L1:
        attributions = with_fast_l1(args, source, split)
    else:
        solver = solver_from(args, len(split.train), source.num_features)
        attributions = fit_and_score(source, split, solver, fit_options(args, out_dir))
    attributions.summary |= {"seed": args.data.seed, "use_bias": args.cfg.use_bias}
    attributions.save(out_dir)
    discard_partial(out_dir)
    print(
        f"saved {out_dir / DATAMODELS} ({attributions.num_features} × {attributions.num_targets})"
    )


def fit_options(args: SimpleNamespace, out_dir: Path) -> FitOptions:
    """Return how the arguments want the fit done."""
    limit = args.cfg.memory_gb
    return FitOptions(
        device=resolve_device(args.cfg.device),
        use_bias=args.cfg.use_bias,
        partial_dir=out_dir / PARTIAL,
        memory_limit=None if limit is None else limit * 1e9,
        with_curve=args.cfg.learning_curve,
    )


def with_fast_l1(args: SimpleNamespace, source: RowSource, split: Split) -> Attributions:
    """Run the installed fast_l1 (CUDA only) with upstream's settings."""
    return fit_with_fast_l1(
        source,
        split.train,
        split.validation,
        lr=args.cfg.lr,
        num_lambdas=args.cfg.k,
        eps=args.cfg.eps,
        max_lambda=args.cfg.manual_max_lambda,
        batch_size=args.cfg.batch_size or len(split.train),
        check_every=args.early_stopping.check_every,
        stop_eps=args.early_stopping.eps,
        use_bias=args.cfg.use_bias,
        device=resolve_device(args.cfg.device),
    )


def check_out_dir(path: Path) -> None:
    """RegressionError if ``path`` holds anything but an interrupted run: nothing is overwritten."""
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {PARTIAL}):
        raise RegressionError(
            f"--cfg.out_dir {path} already exists; give another directory or move it away"
        )


def upstreams_solver(args: SimpleNamespace, num_rows: int, num_features: int) -> str:
    """Return the solver that manual_max_lambda and k mean, printing warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solver = solver_for(args.cfg.manual_max_lambda, args.cfg.k, num_rows, num_features)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return solver


def target_range(section: SimpleNamespace, prefix: str = "--data.") -> slice:
    """Return the targets to fit as a slice; RegressionError if the range makes no sense."""
    start, end = section.target_start_ind, section.target_end_ind
    if start < 0 or (end != -1 and end <= start):
        raise RegressionError(
            f"{prefix}target_start_ind {start} and {prefix}target_end_ind {end} name no targets"
        )
    return slice(start, None if end == -1 else end)


def solver_from(args: SimpleNamespace, num_rows: int, num_features: int) -> Solver:
    """Return the solver that the arguments mean, with those of them that are options of it."""
    cfg = args.cfg
    name = cfg.solver or upstreams_solver(args, num_rows, num_features)
    lam = cfg.lam
    if lam is None and cfg.manual_max_lambda >= 0 and name in ("lasso", "saga"):
        lam = cfg.manual_max_lambda or None
    given: dict[str, Any] = {
        "lam": lam,
        "l1_ratio": cfg.l1_ratio,
        "positive": cfg.positive,
        "tol": cfg.tol if "cfg.tol" in args.given else None,
        "lr": cfg.lr if "cfg.lr" in args.given else None,
        "batch_size": cfg.batch_size,
        "folds": cfg.folds,
    }
    if cfg.k != 1:
        given |= {"num_lambdas": cfg.k, "eps": cfg.eps}
    if cfg.prior_scores is not None:
        given |= load_scores(cfg.prior_scores, target_range(args.data))
    known = {field.name for field in fields(SOLVERS[name])} if name in SOLVERS else set()
    if cfg.prior_scores is not None and "scores" not in known:
        raise RegressionError(
            "--cfg.prior_scores is for --cfg.solver informed_prior or auto, not "
            f"{cfg.solver or 'what manual_max_lambda and k mean'}"
        )
    chosen = {key: value for key, value in given.items() if key in known and value is not None}
    return solver_of(name, **chosen)


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


if __name__ == "__main__":
    run(main)

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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.devices import resolve_device
from coarlib.errors import RegressionError
from coarlib.interop.fast_l1 import fit_with_fast_l1
from coarlib.regression.attributions import DATAMODELS, Attributions
from coarlib.regression.fit import NEED_SCORES, SOLVERS
from coarlib.regression.fit_and_score import AUTO, Experiment, solver_for
from coarlib.regression.moments.checkpoint import PARTIAL, discard_partial
from coarlib.regression.rows import RowSource, open_rows, verified_note
from coarlib.regression.solvers.lasso import EPS, NUM_LAMBDAS
from coarlib.regression.solvers.prior import load_scores
from coarlib.regression.split import Split, split_rows

FAST_L1 = "fast_l1"
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
        "solver": Param(str, f"{', '.join((AUTO, *SOLVERS, FAST_L1))}; default: see above"),
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
        attributions = experiment_of(args, source, split, out_dir).run()
    attributions.summary |= {"seed": args.data.seed, "use_bias": args.cfg.use_bias}
    attributions.save(out_dir)
    discard_partial(out_dir)
    print(
        f"saved {out_dir / DATAMODELS} ({attributions.num_features} × {attributions.num_targets})"
    )


def experiment_of(
    args: SimpleNamespace, source: RowSource, split: Split, out_dir: Path
) -> Experiment:
    """Put the arguments together into an experiment."""
    solver = args.cfg.solver or upstreams_solver(args, len(split.train), source.num_features)
    limit = args.cfg.memory_gb
    return Experiment(
        source=source,
        split=split,
        solver=solver,
        options=solver_options(args),
        device=resolve_device(args.cfg.device),
        use_bias=args.cfg.use_bias,
        partial_dir=out_dir / PARTIAL,
        memory_limit=None if limit is None else limit * 1e9,
        folds=args.cfg.folds,
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


def solver_options(args: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """Return the arguments that concern each solver."""
    cfg = args.cfg
    lasso: dict[str, Any] = {"l1_ratio": cfg.l1_ratio, "positive": cfg.positive, "tol": cfg.tol}
    lasso |= {"num_lambdas": cfg.k, "eps": cfg.eps}
    fixed = cfg.lam
    if fixed is None and cfg.manual_max_lambda > 0:
        fixed = cfg.manual_max_lambda
    if cfg.solver == AUTO or cfg.k == 1:
        lasso |= {"num_lambdas": NUM_LAMBDAS, "eps": EPS}
    ridge: dict[str, Any] = {}
    if fixed is not None:
        lasso["lam"] = ridge["lam"] = fixed
    saga: dict[str, Any] = {"lam": fixed}
    if "cfg.lr" in args.given and cfg.solver == "saga":
        saga["lr"] = cfg.lr
    if cfg.batch_size is not None:
        saga["batch_size"] = cfg.batch_size
    # manual_max_lambda: 0 is upstream's way of asking for least squares.
    plain = 0.0 if fixed is None and cfg.manual_max_lambda == 0 else fixed
    options = {"lasso": lasso, "ridge": ridge, "saga": saga, "conjugate_gradients": {"lam": plain}}
    if cfg.prior_scores is not None:
        if cfg.solver not in (AUTO, *NEED_SCORES):
            raise RegressionError(
                "--cfg.prior_scores is for --cfg.solver informed_prior or auto, not "
                f"{cfg.solver or 'what manual_max_lambda and k mean'}"
            )
        options["informed_prior"] = load_scores(cfg.prior_scores, target_range(args.data))
    return options


if __name__ == "__main__":
    run(main)

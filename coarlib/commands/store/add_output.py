"""Measure another output of rows that are there, from their checkpoints: nothing is trained.

    coar add_output STORE test_losses --task my_task.py:Losses --checkpoints DIR --rows 0:100

Fills STORE/added/test_losses, which score_lds, run_regression and write_dataset find under
--y_name test_losses. Rows that have it are skipped, so the same command resumes; with --claim
any number of workers share the rows. A missing or stale checkpoint is an error. Later calls must
name the same task and settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.commands.store.make_dataset import WORKER
from coarlib.devices import resolve_device
from coarlib.filling.added_outputs import add_output
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.filling.worker import FillOptions
from coarlib.store import Store
from coarlib.store.added import added_path

_AS_WORKERS = ("device", "threads", "claim", "rows_per_batch", "rerun", "allow_nonfinite")
COMMAND = Command(
    "add_output",
    __doc__,
    {
        "store": common.store(),
        "key": Param(str, "name of the output", required=True, positional=True),
        "task": common.task(),
        "set": common.settings(),
        "checkpoints": Param(str, "where the models are, handed to the task as checkpoints="),
        "dtype": Param(str, "dtype of the stored output", default="float32"),
        "rows": common.rows(),
        **{name: WORKER[name] for name in _AS_WORKERS},
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the output that the arguments name."""
    args = COMMAND.parse(argv)
    store = Store.open(args.store)
    rows = common.rows_of(args.rows, store.num_models)
    if args.checkpoints is not None:
        args.set["checkpoints"] = args.checkpoints
    task = common.load_task(args, args.store)
    options = FillOptions(
        rerun=args.rerun,
        rows_per_batch=args.rows_per_batch,
        allow_nonfinite=args.allow_nonfinite,
        claim=args.claim,
        ways_round=("allow_nonfinite", "rerun"),
        origin={"task": args.task, "settings": args.set, "directory": str(Path.cwd())},
    )
    device = resolve_device(args.device, args.threads)
    report = add_output(
        store, args.key, task, np.arange(*rows), device, options=options, dtype=args.dtype
    )
    added = Store.open(added_path(store, args.key))
    print(
        f"{args.key}: {report.written} rows written, {report.skipped} were there already; "
        f"{len(added.completed_rows())} of the {len(store.completed_rows())} completed rows of "
        f"{store.path} have it"
    )
    if report.stopped:
        sys.exit(EXIT_ABANDONED if report.abandoned else EXIT_STOPPED)
    keep_arguments(args, added.path)
    if len(added.completed_rows()) < len(store.completed_rows()):
        print(again(args, rows=None))
    else:
        print(next_step("run_regression", args.store, y_name=args.key))


if __name__ == "__main__":
    run(main)

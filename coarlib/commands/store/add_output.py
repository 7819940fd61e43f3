"""Measure another output of rows that are there, from their checkpoints: nothing is trained.

    coar add_output STORE test_losses --task my_task.py:Losses [--checkpoints DIR] [--rows 0:100]

Fills STORE/added/test_losses, which score_lds, run_regression and write_dataset find under
--data.y_name test_losses. Rows that have it are skipped, so the same command resumes; with --claim
any number of workers share the rows. A missing or stale checkpoint is an error. Later calls must
name the same task and settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coarlib.commands.arguments import PLAIN, Param, parse, row_slice, run
from coarlib.commands.store.make_dataset import TASK_PARAMS, WORKER_PARAMS, task_settings
from coarlib.devices import resolve_device
from coarlib.filling.added_outputs import add_output
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.filling.worker import FillOptions
from coarlib.store import Store
from coarlib.store.added import added_path
from coarlib.task import load_task

POSITIONAL = {
    "store": Param(str, "directory of the store", required=True),
    "key": Param(str, "name of the output", required=True),
}
_AS_WORKERS = ("device", "threads", "claim", "rows_per_batch", "rerun", "allow_nonfinite")
SECTIONS = {
    PLAIN: {
        **TASK_PARAMS,
        "checkpoints": Param(str, "where the models are, handed to the task as checkpoints="),
        "dtype": Param(str, "dtype of the stored output", default="float32"),
        "rows": Param(str, "only rows START:STOP"),
        **{name: WORKER_PARAMS[name] for name in _AS_WORKERS},
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the output that the arguments name."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    given = args.options
    store = Store.open(args.store)
    rows = (0, store.num_models)
    if given.rows is not None:
        rows = row_slice(given.rows, store.num_models, "--rows")
    settings = task_settings(given.task_args, "--task_args")
    if given.checkpoints is not None:
        settings["checkpoints"] = given.checkpoints
    task = load_task(given.task, settings, args.store)
    options = FillOptions(
        rerun=given.rerun,
        rows_per_batch=given.rows_per_batch,
        allow_nonfinite=given.allow_nonfinite,
        claim=given.claim,
        origin={"task": given.task, "settings": settings, "directory": str(Path.cwd())},
    )
    device = resolve_device(given.device, given.threads)
    report = add_output(
        store, args.key, task, np.arange(*rows), device, options=options, dtype=given.dtype
    )
    added = Store.open(added_path(store, args.key))
    print(
        f"{args.key}: {report.written} rows written, {report.skipped} were there already; "
        f"{len(added.completed_rows())} of the {len(store.completed_rows())} completed rows of "
        f"{store.path} have it"
    )
    if report.stopped:
        sys.exit(EXIT_ABANDONED if report.abandoned else EXIT_STOPPED)


if __name__ == "__main__":
    run(main)

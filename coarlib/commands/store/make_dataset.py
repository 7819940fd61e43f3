"""Fill rows of a store: compute what a task measures under each row's mask.

    python -m estimate.make_dataset --expt.base_dir STORE --expt.task my_task.py:MyTask \\
        --expt.start_index 0 --expt.end_index 100

Rows that are completed already are skipped, so the same command resumes after any crash, and any
number of workers may fill disjoint (or even the same) ranges at once. Each set-up has its own
estimate.<set-up>.make_dataset, which knows its task and its settings. SIGTERM, SIGUSR1 and Ctrl-C
finish the rows in hand and exit with 75; a second signal drops them and exits with 76.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, TaskError
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.filling.worker import FillOptions, FillReport, fill, row_range
from coarlib.masks import MaskDesign
from coarlib.store import Store, settle_design
from coarlib.store.claims import DEFAULT_TTL
from coarlib.task import Task, load_task

WORKER_PARAMS = {
    "base_dir": Param(str, "directory of the store", required=True),
    "start_index": Param(int, "first row to fill", default=0),
    "end_index": Param(int, "row after the last one to fill; -1 = all", default=-1),
    "num_partitions": Param(Whole(1), "split the row range among this many workers", default=1),
    "partition_index": Param(Whole(0), "which part of the split is this worker's", default=0),
    "rerun": Param(Boolean(), "compute completed rows again", default=False),
    "rows_per_batch": Param(Whole(1), "rows computed and committed together; default: the task's"),
    "subsample_prob": Param(
        float, "probability that a component is kept, if the spec has no design"
    ),
    "seed": Param(int, "seed of the masks, if the spec has no design", default=0),
    "mask_size": Param(int, "width of a mask, checked against the store"),
    "allow_nonfinite": Param(Boolean(), "record rows with NaN or inf", default=False),
    "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
    "claim": Param(
        Boolean(),
        "share the rows out among all workers started so, until none is left",
        default=False,
    ),
    "claim_ttl": Param(
        float, "seconds without a heartbeat after which a block is taken over", default=DEFAULT_TTL
    ),
    "claim_wait": Param(
        Boolean(), "wait at the end for other workers' blocks, in case they die", default=True
    ),
    "threads": Param(Whole(1), "CPU threads of this worker; default: all cores"),
}

TASK_PARAMS = {
    "task": Param(str, "package.module:Class or file.py:Class", required=True),
    "task_args": Param(str, "JSON object with the task's settings", default="{}"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Fill rows from the task named by ``--expt.task``."""
    args = parse(__doc__ or "", {"expt": {**TASK_PARAMS, **WORKER_PARAMS}}, argv).expt
    settings = task_settings(args.task_args, "--expt.task_args")
    origin = {"task": args.task, "settings": settings}
    _fill(args, lambda: load_task(args.task, settings, args.base_dir), origin)


def task_settings(text: str, name: str) -> dict[str, Any]:
    """Read a task's settings from JSON; ArgumentError names the argument ``name``."""
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{name} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ArgumentError(f"{name} must be a JSON object")
    return settings


def fill_with(
    task_class: type[Task],
    params: Mapping[str, Param],
    argv: Sequence[str] | None,
    description: str,
) -> None:
    """Run a set-up's make_dataset.

    Parameters
    ----------
    task_class : subclass of Task
        Called with the values of ``params`` as keyword arguments.
    params : mapping of name to Param
        The set-up's own settings; each is an ``--expt.<name>`` argument.
    """
    args = parse(description, {"expt": {**WORKER_PARAMS, **params}}, argv).expt
    settings = {name: getattr(args, name) for name in params}
    name = f"{task_class.__module__}:{task_class.__qualname__}"
    _fill(args, lambda: task_class(**settings), {"task": name, "settings": settings})


def _fill(args: SimpleNamespace, build_task: Callable[[], Task], origin: Mapping[str, Any]) -> None:
    store = Store.open(args.base_dir)
    rows = _rows(args, store)
    _settle_masks(args, store)
    if args.claim and args.rerun:
        raise ArgumentError("--expt.claim shares out missing rows; it cannot go with --expt.rerun")
    if args.claim_ttl <= 0:
        raise ArgumentError(f"--expt.claim_ttl must be above 0 seconds, not {args.claim_ttl}")
    options = FillOptions(
        rerun=args.rerun,
        rows_per_batch=args.rows_per_batch,
        allow_nonfinite=args.allow_nonfinite,
        claim=args.claim,
        claim_ttl=args.claim_ttl,
        claim_wait=args.claim_wait,
        origin={**origin, "directory": str(Path.cwd())},
    )
    device = resolve_device(args.device, args.threads)
    report = fill(store, build_task(), rows, device, options)
    print(_summary(report, store))
    if report.stopped:
        sys.exit(EXIT_ABANDONED if report.abandoned else EXIT_STOPPED)


def _rows(args: SimpleNamespace, store: Store) -> NDArray[np.int64]:
    end = store.num_models if args.end_index == -1 else args.end_index
    rows = row_range(args.start_index, end, store.num_models)
    if args.partition_index >= args.num_partitions:
        raise ArgumentError(
            f"--expt.partition_index is {args.partition_index} but there are "
            f"{args.num_partitions} partitions (0 to {args.num_partitions - 1})"
        )
    return np.array_split(rows, args.num_partitions)[args.partition_index]


def _settle_masks(args: SimpleNamespace, store: Store) -> None:
    """Settle the design of a store whose spec has none, as upstream's arguments say."""
    key = store.mask_key
    if args.mask_size is not None and key is not None:
        width = store.spec.schema[key].shape[0]
        if width != args.mask_size:
            raise TaskError(
                f"--expt.mask_size is {args.mask_size} but {key} of {store.path} has {width} "
                "features a row"
            )
    if args.subsample_prob is None:
        return
    if not 0 < args.subsample_prob <= 1:
        raise ArgumentError(
            f"--expt.subsample_prob must be above 0 and at most 1, not {args.subsample_prob}"
        )
    if key is None:
        raise ArgumentError(
            f"--expt.subsample_prob draws masks, but {store.path} has no mask array (bool, one "
            "dimension)"
        )
    seed = args.seed if store.design is None else store.design.seed
    settle_design(
        store.path,
        store.spec,
        MaskDesign(array=key, kind="bernoulli", keep_prob=args.subsample_prob, seed=seed),
    )


def _summary(report: FillReport, store: Store) -> str:
    words: list[Any] = [f"{report.written} rows written"]
    if report.seconds and report.written:
        words[0] += f" in {report.seconds:.1f} s ({report.written / report.seconds:.3g} rows/s)"
    if report.skipped:
        words.append(f"{report.skipped} were completed already")
    if report.nonfinite_recorded:
        words.append(f"{report.nonfinite_recorded} of them hold NaN or inf")
    if report.taken_over:
        words.append(f"{report.taken_over} blocks taken over from dead workers")
    if report.stopped:
        words.append("stopped by a signal, run the same command for the rest")
    done = len(store.completed_rows())
    return f"{', '.join(words)}; {store.path} has {done} of {store.num_models} rows completed"


if __name__ == "__main__":
    run(main)

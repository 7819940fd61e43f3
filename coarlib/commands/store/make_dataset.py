"""Fill rows of a store: compute what a task measures under each row's mask.

    coar make_dataset STORE --task digits
    coar make_dataset STORE --task my_task.py:MyTask --set batch_size=50 --rows 0:100
    coar make_dataset STORE --task digits --part auto/64

Rows that are completed already are skipped, so the same command resumes after any crash, and any
number of workers may fill disjoint (or even the same) ranges at once (--part 3/8), or share them
out by --claim. Each set-up has its own estimate.<set-up>.make_dataset, which knows its task.
Arguments that a datamodels-style module parses itself, such as --training.lr 0.1, are passed on.
SIGTERM, SIGUSR1 and Ctrl-C finish the rows in hand and exit with 75; a second signal drops them and
exits with 76.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.cluster.parts import part_of
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.leaving import after_rows, again
from coarlib.commands.own_classes import own_ablation
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, TaskError
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.filling.worker import FillOptions, FillReport, fill, row_range
from coarlib.masks import MaskDesign
from coarlib.store import Store, settle_design
from coarlib.store.claims import DEFAULT_TTL
from coarlib.task import Task
from coarlib.tracking import tracked

WORKER = {
    "store": common.store("directory of the store", "expt.base_dir", "worker.logdir"),
    "rows": common.rows("fill only these rows"),
    "idx": Param(Whole(0), "fill only this row", also=("worker.index",)),
    "start_index": Param(Whole(), "first row to fill", default=0, also=("expt.start_index",)),
    "end_index": Param(
        Whole(), "row after the last one to fill; -1 = all", default=-1, also=("expt.end_index",)
    ),
    "part": Param(
        str,
        "fill part I of N of these rows, I/N from 0/N on; auto/N or auto: I, or both, as the job "
        "system numbers this job",
        also=("expt.part",),
    ),
    "num_partitions": Param(
        Whole(1),
        "split the row range among this many workers",
        default=1,
        also=("expt.num_partitions",),
    ),
    "partition_index": Param(
        Whole(0),
        "which part of the split is this worker's",
        default=0,
        also=("expt.partition_index",),
    ),
    "rerun": common.flag("compute completed rows again", "expt.rerun", "worker.do_if_complete"),
    "rows_per_batch": Param(
        Whole(1),
        "rows computed and committed together; default: the task's",
        also=("expt.rows_per_batch",),
    ),
    "keep": Param(
        float,
        "probability that a component is kept, if the spec has no design",
        also=("subsample_prob", "expt.subsample_prob"),
    ),
    "seed": Param(
        Whole(0), "seed of the masks, if the spec has no design", default=0, also=("expt.seed",)
    ),
    "mask_size": Param(
        Whole(), "width of a mask, checked against the store", also=("expt.mask_size",)
    ),
    "allow_nonfinite": common.flag("record rows with NaN or inf", "expt.allow_nonfinite"),
    "device": common.device("expt.device"),
    "claim": common.flag(
        "share the rows out among all workers started so, until none is left", "expt.claim"
    ),
    "claim_ttl": Param(
        float,
        "seconds without a heartbeat after which a block is taken over",
        default=DEFAULT_TTL,
        also=("expt.claim_ttl",),
    ),
    "claim_wait": common.flag(
        "wait at the end for other workers' blocks, in case they die",
        "expt.claim_wait",
        default=True,
    ),
    "allow_other_task": common.flag(
        "fill rows although another task filled some (recorded)", "expt.allow_other_task"
    ),
    "threads": Param(
        Whole(1), "CPU threads of this worker; default: all cores", also=("expt.threads",)
    ),
    "log": common.log(),
    "dry_run": common.flag("say which rows would be filled, and stop"),
}
COMMAND = Command(
    "make_dataset",
    __doc__,
    {
        "store": WORKER["store"],
        "task": common.task("expt.task", "worker.main_import"),
        "set": common.settings("expt.task_args"),
        **WORKER,
    },
    {"worker.job_timeout": "the scheduler limits the time of jobs"},
    passes_on=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill rows from the task named by ``--task``."""
    fill_from(COMMAND.parse(argv))


def fill_from(args: Arguments) -> None:
    """Fill rows as the arguments of make_dataset say."""
    origin: dict[str, Any] = {"task": args.task, "settings": args.set}
    if args.others:
        origin["arguments"] = list(args.others)
    _fill(args, lambda: common.load_task(args, args.store), origin)


def setup_command(task_class: type[Task], params: Mapping[str, Param], text: str) -> Command:
    """Return the make_dataset of a set-up, which knows its task.

    Parameters
    ----------
    task_class : subclass of Task
    params : mapping of name to Param
        The set-up's own settings; each is also an ``--expt.<name>`` argument.
    text : str
        The module's docstring.
    """
    for key, param in params.items():
        param.also = (f"expt.{key}",)
    setup = task_class.__module__.split(".")[-2]
    return Command(f"{setup}.make_dataset", text, {**WORKER, **params})


def fill_with(command: Command, task_class: type[Task], argv: Sequence[str] | None) -> None:
    """Run a set-up's make_dataset: its own settings are the arguments of ``task_class``."""
    args = command.parse(argv)
    settings = {key: getattr(args, key) for key in command.own if key not in WORKER}
    args.task = f"{task_class.__module__}:{task_class.__qualname__}"
    _fill(
        args,
        lambda: task_class(**own_ablation(settings)),
        {"task": args.task, "settings": settings},
    )


def _fill(args: Arguments, build_task: Callable[[], Task], origin: Mapping[str, Any]) -> None:
    store = Store.open(args.store)
    rows = _rows(args, store)
    if args.dry_run:
        missing = np.setdiff1d(rows, store.completed_rows())
        print(f"{len(missing)} of {len(rows)} rows of {args.store} would be filled by {args.task}")
        print(again(args))
        return
    _settle_masks(args, store)
    if args.claim and args.rerun:
        raise ArgumentError("--claim shares out missing rows; it cannot go with --rerun")
    options = FillOptions(
        rerun=args.rerun,
        rows_per_batch=args.rows_per_batch,
        allow_nonfinite=args.allow_nonfinite,
        claim=args.claim,
        claim_ttl=args.claim_ttl,
        claim_wait=args.claim_wait,
        allow_other_task=args.allow_other_task,
        origin={**origin, "directory": str(Path.cwd())},
    )
    device = resolve_device(args.device, args.threads)
    with tracked(args.log, store.path, origin, _so_far(store) if args.log else None):
        report = fill(store, build_task(), rows, device, options)
    print(_summary(report, store))
    if report.stopped:
        sys.exit(EXIT_ABANDONED if report.abandoned else EXIT_STOPPED)
    settings = origin["settings"]
    if "set" not in args.command.own:  # a set-up's own command: what was typed is enough
        settings = {key: settings[key] for key in settings.keys() & args.given}
    print(after_rows(store, args.task, settings))


def _so_far(store: Store) -> Callable[[], Mapping[str, float]]:
    from coarlib.regression.so_far import CorrelationSoFar  # torch's, only where it is asked for

    return CorrelationSoFar(store)


def _rows(args: Arguments, store: Store) -> NDArray[np.int64]:
    given = args.given & {"rows", "idx", "start_index", "end_index"}
    if len(given - {"end_index"}) > 1 or ("end_index" in given and {"rows", "idx"} & given):
        raise ArgumentError(f"--{' and --'.join(sorted(given))} contradict each other")
    if args.idx is not None:
        args.start_index, args.end_index = args.idx, args.idx + 1
    if args.rows is not None:
        args.start_index, args.end_index = common.rows_of(args.rows, store.num_models)
    end = store.num_models if args.end_index == -1 else args.end_index
    rows = row_range(args.start_index, end, store.num_models)
    if args.part is not None:
        if {"num_partitions", "partition_index"} & args.given:
            raise ArgumentError("--part takes the place of --num_partitions and --partition_index")
        args.partition_index, args.num_partitions = part_of(args.part, os.environ)
    if args.claim and args.num_partitions > 1:
        raise ArgumentError(
            "--claim shares the rows out among all workers, so that none needs a part: leave out "
            "--part and --num_partitions (workers that share some rows alone: --rows A:B --claim)"
        )
    if args.partition_index >= args.num_partitions:
        raise ArgumentError(
            f"--partition_index is {args.partition_index} but there are "
            f"{args.num_partitions} partitions (0 to {args.num_partitions - 1})"
        )
    return np.array_split(rows, args.num_partitions)[args.partition_index]


def _settle_masks(args: Arguments, store: Store) -> None:
    """Settle the design of a store whose spec has none, as upstream's arguments say."""
    key = store.mask_key
    if args.mask_size is not None and key is not None:
        width = store.spec.schema[key].shape[0]
        if width != args.mask_size:
            raise TaskError(
                f"--mask_size is {args.mask_size} but {key} of {store.path} has {width} "
                "features a row"
            )
    if args.keep is None:
        return
    if not 0 < args.keep <= 1:
        raise ArgumentError(f"--keep must be above 0 and at most 1, not {args.keep}")
    if key is None:
        raise ArgumentError(
            f"--keep draws masks, but {store.path} has no mask array (bool, one dimension)"
        )
    seed = args.seed if store.design is None else store.design.seed
    settle_design(
        store.path,
        store.spec,
        MaskDesign(array=key, kind="bernoulli", keep_prob=args.keep, seed=seed),
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

"""Initialise a store of memory-mapped arrays, from a task or from a JSON spec.

    coar initialize_store STORE --task digits --rows 1000 --keep 0.95
    coar initialize_store STORE --task digits --design leave_one_out
    coar initialize_store STORE --spec specs/digits.json

Creates STORE with one .npy array for each key of the schema, the _completed flags and the row
checksums; files are sparse and take no room until workers fill them. With --task, names, shapes and
dtypes are the task's. Running it twice changes nothing; with another spec it refuses and names the
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, run
from coarlib.commands.checkers import Choice
from coarlib.commands.leaving import after_rows, keep_arguments
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, SpecError
from coarlib.loading import load_npy
from coarlib.masks import MaskDesign
from coarlib.setups import names, shipped_file
from coarlib.store import Store, initialize
from coarlib.store.layout import SPEC_FILE
from coarlib.store.spec import load_spec

OF_A_TASK = ("bernoulli", "fixed_size", "leave_one_out")  # designs that need no more than --keep
COMMAND = Command(
    "initialize_store",
    __doc__,
    {
        "store": common.store("directory of the store to create", "logging.logdir"),
        "task": common.task(required=False, note=", which says names, shapes and dtypes"),
        "set": common.settings(),
        "rows": common.rows("how many rows there are to be"),
        "keep": Param(
            float,
            "each component is kept with this probability",
            also=("keep_prob", "subsample_prob"),
        ),
        "design": Param(
            Choice(OF_A_TASK),
            "bernoulli; fixed_size: every row keeps the same number, --keep of all; leave_one_out: "
            "a row a component, and one that keeps all",
            default="bernoulli",
        ),
        "seed": common.seed("of the masks"),
        "device": common.device(),
        "spec": Param(
            str,
            "instead of a task: JSON file with num_models, schema and optionally design",
            also=("logging.spec",),
        ),
        "masks": Param(
            str,
            ".npy file, bool [num_models, N], for an explicit design",
            also=("logging.masks",),
        ),
        "labels": Param(
            str,
            ".npy file, classes [N], for a stratified or class_balanced design",
            also=("logging.labels",),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Create the store that the arguments describe."""
    args = COMMAND.parse(argv)
    if (args.spec is None) == (args.task is None):
        raise ArgumentError("give either --task, --rows and --keep, or --spec")
    created = _from_spec(args) if args.task is None else _from_task(args)
    store = Store.open(args.store)
    if created:
        keep_arguments(args, store.path)
        print(f"created {args.store}: {store.describe()}")
    else:
        print(
            f"{args.store} is already there with this spec ({len(store.completed_rows())} of "
            f"{store.num_models} rows completed); nothing changed"
        )
    print(after_rows(store, args.task or _setup_of(args.spec), args.set))


def _from_spec(args: Arguments) -> bool:
    if given := [key for key in ("rows", "keep", "design", "seed", "set") if key in args.given]:
        raise ArgumentError(f"--{given[0]} goes with --task; a spec says it itself")
    masks, labels = _load(args.masks), _load(args.labels)
    return initialize(args.store, load_spec(shipped_file(args.spec)), masks, labels)


def _from_task(args: Arguments) -> bool:
    if args.design == "leave_one_out":
        if args.keep is not None:
            raise ArgumentError("--keep goes with other designs than leave_one_out")
    elif args.rows is None or args.keep is None:
        raise ArgumentError("--task goes with --rows (how many) and --keep (the probability)")
    if given := [key for key in ("masks", "labels") if key in args.given]:
        raise ArgumentError(f"--{given[0]} goes with --spec")
    there = (Path(args.store) / SPEC_FILE).is_file()
    task = common.load_task(args, args.store)
    if args.rows is None:
        task.prepare(resolve_device(args.device))  # only then it may know its components
        rows = task.layout().num_features + 1
    else:
        rows = common.count_of(args.rows)
    design = MaskDesign(kind=args.design, keep_prob=args.keep, seed=args.seed)
    Store.create(args.store, task, rows, design=design, device=args.device)
    return not there


def _setup_of(spec: str) -> str:
    """Name the set-up that a spec is called after."""
    stem = shipped_file(spec).stem
    return next((name for name in names() if stem in (name, f"{name}_test")), "TASK")


def _load(path: str | None) -> NDArray[Any] | None:
    return None if path is None else load_npy(path, SpecError)


if __name__ == "__main__":
    run(main)

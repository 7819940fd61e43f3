"""Compute one row again and compare it with what the store holds.

    coar recompute STORE ROW [--task file.py:Class --set model_path=…]

The settings come from the row's provenance unless given, and so does the task, where it is one of
coarlib's own set-ups. Exits with 1 if the row
differs by more than the task's stated tolerance; the store is not changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import next_step
from coarlib.commands.own_classes import own_ablation
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, StoreError, printable
from coarlib.filling.worker import recompute
from coarlib.setups import is_shipped, load
from coarlib.store import Store
from coarlib.store.provenance import batch_of

COMMAND = Command(
    "recompute",
    __doc__,
    {
        "store": common.store(),
        "row": Param(Whole(0), "index of the row", required=True, positional=True),
        "task": common.task(required=False, note="; default: as recorded"),
        "set": common.settings(),
        "device": common.device(),
        "allow_other_task": common.flag("compare with another task than the row's"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Recompute the row that the arguments name."""
    args = COMMAND.parse(argv)
    store = Store.open(args.store)
    if args.row >= store.num_models or not store.completed()[args.row]:
        raise StoreError(f"row {args.row} of {args.store} is not completed")
    recorded = batch_of(Path(args.store), args.row).worker.get("task", {})
    name = args.task or recorded.get("task")
    if name is None:
        raise ArgumentError("the row's provenance names no task; give --task")
    if args.task is None and not is_shipped(str(name)):
        raise ArgumentError(
            f"the row's provenance names {printable(name)}, which is none of coarlib's own "
            "set-ups: a store does not choose what code runs here; give --task"
        )
    settings = own_ablation(args.set) if "set" in args.given else recorded.get("settings", {})
    task = load(name, settings, args.store)
    device = resolve_device(args.device)
    differences = recompute(store, task, args.row, device, args.allow_other_task)
    worst = max(differences.values())
    for key, value in differences.items():
        print(f"{key}: largest difference {value:.6g}")
    if worst > task.tolerance:
        print(f"row {args.row} differs by more than the task's tolerance of {task.tolerance:g}")
        sys.exit(1)
    print(f"row {args.row} is what the task computes (tolerance {task.tolerance:g})")
    print(next_step("verify", args.store))


if __name__ == "__main__":
    run(main)

"""Compute one row again and compare it with what the store holds.

    coar recompute STORE ROW [--task file.py:Class --task_args '{"model_path": "…"}']

The task and its settings come from the row's provenance unless given. Exits with 1 if the row
differs by more than the task's stated tolerance; the store is not changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands.arguments import PLAIN, Param, Whole, parse, run
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, StoreError
from coarlib.filling.worker import recompute
from coarlib.store import Store
from coarlib.store.provenance import batch_of
from coarlib.task import load_task

POSITIONAL = {
    "store": Param(str, "directory of the store", required=True),
    "row": Param(Whole(0), "index of the row", required=True),
}
SECTIONS = {
    PLAIN: {
        "task": Param(str, "package.module:Class or file.py:Class; default: as recorded"),
        "task_args": Param(str, "JSON object of settings; default: as recorded"),
        "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Recompute the row that the arguments name."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    store = Store.open(args.store)
    if args.row >= store.num_models or not store.completed()[args.row]:
        raise StoreError(f"row {args.row} of {args.store} is not completed")
    recorded = batch_of(Path(args.store), args.row).worker.get("task", {})
    name = args.options.task or recorded.get("task")
    if name is None:
        raise ArgumentError("the row's provenance names no task; give --task")
    try:
        settings = json.loads(args.options.task_args or json.dumps(recorded.get("settings", {})))
    except json.JSONDecodeError as error:
        raise ArgumentError(f"--task_args is not JSON: {error}") from error
    task = load_task(name, settings, args.store)
    differences = recompute(store, task, args.row, resolve_device(args.options.device))
    worst = max(differences.values())
    for key, value in differences.items():
        print(f"{key}: largest difference {value:.6g}")
    if worst > task.tolerance:
        print(f"row {args.row} differs by more than the task's tolerance of {task.tolerance:g}")
        sys.exit(1)
    print(f"row {args.row} is what the task computes (tolerance {task.tolerance:g})")


if __name__ == "__main__":
    run(main)

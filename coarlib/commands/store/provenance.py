"""Say where a row came from: who computed it, when, from which task, with which versions.

coar provenance STORE ROW [--json]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import after_rows, next_step
from coarlib.errors import printable
from coarlib.setups import is_shipped
from coarlib.store import Store
from coarlib.store.layout import WORKERS_DIR
from coarlib.store.provenance import batch_of

COMMAND = Command(
    "provenance",
    __doc__,
    {
        "store": common.store(),
        "row": Param(Whole(0), "index of the row", required=True, positional=True),
        "json": common.flag("one JSON object"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the record of the row that the arguments name."""
    args = COMMAND.parse(argv)
    store = Store.open(args.store)
    batch = batch_of(store.path, args.row)
    facts = {
        "row": args.row,
        "completed": bool(store.completed()[args.row]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch.started)),
        "seconds": batch.seconds,
        "rows_of_batch": [list(pair) for pair in batch.ranges],
        **batch.worker,
    }
    if "host" not in batch.worker:  # the first line of the log, which says who, was passed over
        log = store.path / WORKERS_DIR / f"{batch.worker['worker']}.jsonl"
        print(
            f"warning: the first line of {log} is damaged, so who computed the row, from which "
            "task and with which versions is not known",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else value
        print(f"{printable(key):<14} {printable(shown)}")
    if facts["completed"]:
        task = batch.worker.get("task")
        known = isinstance(task, dict) and is_shipped(str(task.get("task")))
        print(next_step("recompute", args.store, args.row, task=None if known else "TASK"))
    else:
        print(after_rows(store))


if __name__ == "__main__":
    run(main)

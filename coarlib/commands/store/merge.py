"""Join stores that were filled apart into one.

    coar merge OUT STORE_A STORE_B …

Row i of each store becomes row i of OUT. Specs, designs and seeds must agree; rows that several
stores hold must be identical. Running it again finishes an interrupted merge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fastargs.validation import Anything

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import after_rows, keep_arguments
from coarlib.store import Store
from coarlib.store.merge import merge

COMMAND = Command(
    "merge",
    __doc__,
    {
        "out": common.store("directory of the store to make or extend"),
        "stores": Param(Anything(), "stores to read", required=True, positional=True, many=True),
        "allow_other_task": common.flag("join rows that different tasks made (recorded)"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Merge the stores that the arguments name."""
    args = COMMAND.parse(argv)
    there = Path(args.out).exists()
    report = merge(
        args.out,
        [Store.open(path) for path in args.stores],
        quiet=False,
        allow_other_task=args.allow_other_task,
    )
    for path in report.unverified:
        print(f"warning: {path} carries no checksums: its rows are unverified", file=sys.stderr)
    store = Store.open(args.out)
    print(
        f"{report.copied} rows copied, {report.present} were there already; {args.out} has "
        f"{len(store.completed_rows())} of {store.num_models} rows completed"
        + (f"; {report.copied_added} rows of added outputs" if report.copied_added else "")
    )
    if not there:
        keep_arguments(args, store.path)
    print(after_rows(store))


if __name__ == "__main__":
    run(main)

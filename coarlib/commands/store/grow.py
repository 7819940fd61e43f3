"""Add rows to a store in place; data is never moved and workers may be running.

coar grow STORE --rows 100000
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Command, run
from coarlib.commands.leaving import after_rows
from coarlib.store import Store
from coarlib.store.grow import grow

COMMAND = Command(
    "grow",
    __doc__,
    {
        "store": common.store(),
        "rows": common.rows("all rows, afterwards", "num_models", required=True),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Grow the store that the arguments name."""
    args = COMMAND.parse(argv)
    before = Store.open(args.store)
    after = grow(before, common.count_of(args.rows))
    print(f"{args.store} has {after.num_models} rows (before: {before.num_models})")
    print(after_rows(after))


if __name__ == "__main__":
    run(main)

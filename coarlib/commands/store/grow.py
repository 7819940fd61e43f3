"""Add rows to a store in place; data is never moved and workers may be running.

coar grow STORE --num_models 100000
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import PLAIN, Param, Whole, parse, run
from coarlib.store import Store
from coarlib.store.grow import grow

POSITIONAL = {"store": Param(str, "directory of the store", required=True)}
SECTIONS = {PLAIN: {"num_models": Param(Whole(1), "rows in all, afterwards", required=True)}}


def main(argv: Sequence[str] | None = None) -> None:
    """Grow the store that the arguments name."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    before = Store.open(args.store)
    after = grow(before, args.options.num_models)
    print(f"{args.store} has {after.num_models} rows (before: {before.num_models})")


if __name__ == "__main__":
    run(main)

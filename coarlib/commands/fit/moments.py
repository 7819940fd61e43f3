"""Sum the rows of a fit in shards, on any machines in any order, for run_regression to solve.

    coar moments STORE [FIT] --index I --count K     (K jobs, I = 0 … K-1)
    coar moments STORE [FIT] --join --count K
    coar run_regression STORE [FIT]

where FIT are the arguments of run_regression, the same for all three. A shard that is there
already, for the same rows, is not summed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coarlib.cluster.shards import add_shards, write_shard
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.fit.run_regression import COMMAND as REGRESSION
from coarlib.commands.fit.run_regression import IGNORED, ROWS, SOLVING, out_of, rows_of
from coarlib.commands.leaving import again
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.regression.moments.checkpoint import PARTIAL, save_moments
from coarlib.regression.rows import verified_note

SHARD = {
    "store": ROWS["store"],
    "index": Param(Whole(0), "which shard this is, from 0", also=("shard.index",)),
    "count": Param(Whole(1), "how many shards there are", required=True, also=("shard.count",)),
    "join": common.flag("put all shards together", "shard.join"),
}
COMMAND = Command("moments", __doc__, {**SHARD, **ROWS, **SOLVING}, IGNORED)


def check_shard(args: Arguments) -> None:
    """ArgumentError if the arguments name no shard, or one that does not exist."""
    if (args.index is None) == (not args.join):
        raise ArgumentError("give either --index I or --join")
    if args.index is not None and args.index >= args.count:
        raise ArgumentError(f"--index {args.index} must be below --count {args.count}")


def main(argv: Sequence[str] | None = None) -> None:
    """Sum one shard of the rows, or add all shards up."""
    args = COMMAND.parse(argv)
    check_shard(args)
    out_dir = out_of(args)
    source, split = rows_of(args)
    for role, positions in (("train", split.train), ("validation", split.validation)):
        parts = [part for part in np.array_split(positions, args.count) if len(part)]
        paths = [out_dir / PARTIAL / f"{role}-{i}-of-{args.count}.npz" for i in range(len(parts))]
        if args.join and parts:
            rows = source.row_ids[positions]
            total = add_shards(source, positions, paths)
            save_moments(out_dir / PARTIAL / f"{role}.npz", total, rows, source.identity(rows))
            print(f"{role}: {len(parts)} shards hold {len(rows)} rows; run_regression goes on here")
        elif not args.join and args.index < len(parts):
            device = resolve_device(args.device)
            part, path = parts[args.index], paths[args.index]
            if args.verify:
                print(verified_note(source, part))
            new = write_shard(source, part, path, device, quiet=False)
            print(f"{role}: {len(part)} rows {'summed into' if new else 'are already in'} {path}")
    print(again(args, REGRESSION) if args.join else again(args, index=None, join=True))


if __name__ == "__main__":
    run(main)

"""Sum the rows of a fit in shards, on any machines in any order, for run_regression to solve.

    coar moments FIT --shard.index I --shard.count K     (K jobs, I = 0 … K-1)
    coar moments FIT --shard.join --shard.count K
    coar run_regression FIT

where FIT are the arguments of run_regression, the same for all three. A shard that is there
already, for the same rows, is not summed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coarlib.cluster.shards import add_shards, write_shard
from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.commands.fit.run_regression import IGNORED, check_out_dir, target_range
from coarlib.commands.fit.run_regression import SECTIONS as FIT_SECTIONS
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.regression.moments.checkpoint import PARTIAL, save_moments
from coarlib.regression.rows import open_rows, verified_note
from coarlib.regression.split import split_rows

SECTIONS = {
    **FIT_SECTIONS,
    "shard": {
        "index": Param(Whole(0), "which shard to sum, from 0"),
        "count": Param(Whole(1), "how many shards there are", required=True),
        "join": Param(Boolean(), "add up all shards", default=False),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Sum one shard of the rows, or add all shards up."""
    args = parse(__doc__ or "", SECTIONS, argv, ignored=IGNORED)
    shard, out_dir = args.shard, Path(args.cfg.out_dir)
    if (shard.index is None) == (not shard.join):
        raise ArgumentError("give either --shard.index I or --shard.join")
    if shard.index is not None and shard.index >= shard.count:
        raise ArgumentError(
            f"--shard.index {shard.index} must be below --shard.count {shard.count}"
        )
    check_out_dir(out_dir)
    source = open_rows(
        args.data.data_path, args.data.x_name, args.data.y_name, target_range(args.data)
    )
    split = split_rows(source, args.data.num_train, args.data.num_val, args.data.seed)
    for role, positions in (("train", split.train), ("validation", split.validation)):
        parts = [part for part in np.array_split(positions, shard.count) if len(part)]
        paths = [out_dir / PARTIAL / f"{role}-{i}-of-{shard.count}.npz" for i in range(len(parts))]
        if shard.join and parts:
            rows = source.row_ids[positions]
            total = add_shards(source, positions, paths)
            save_moments(out_dir / PARTIAL / f"{role}.npz", total, rows, source.identity(rows))
            print(f"{role}: {len(parts)} shards hold {len(rows)} rows; run_regression goes on here")
        elif not shard.join and shard.index < len(parts):
            device = resolve_device(args.cfg.device)
            part, path = parts[shard.index], paths[shard.index]
            if args.data.verify:
                print(verified_note(source, part))
            new = write_shard(source, part, path, device, quiet=False)
            print(f"{role}: {len(part)} rows {'summed into' if new else 'are already in'} {path}")


if __name__ == "__main__":
    run(main)

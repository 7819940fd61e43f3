"""Fit one block of the targets (one job of an array, one GPU of a node), or join the blocks.

    coar fit_targets FIT --shard.index I --shard.count K     (K jobs, I = 0 … K-1)
    coar fit_targets FIT --shard.join --shard.count K

where FIT are the arguments of run_regression. Block I goes to OUT.targets/I, all of them to OUT.
What a solver chooses for all targets together (ridge's λ) it chooses for each block; fix it
(--cfg.lam) where the blocks must agree with one fit to the last digit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.cluster.shards import join_targets, target_shard
from coarlib.commands.arguments import parse, run
from coarlib.commands.fit import run_regression
from coarlib.commands.fit.moments import SECTIONS
from coarlib.errors import ArgumentError
from coarlib.regression import Attributions
from coarlib.regression.rows import open_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Fit one block of targets, or join all blocks."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(__doc__ or "", SECTIONS, words, ignored=run_regression.IGNORED)
    shard, out_dir = args.shard, Path(args.cfg.out_dir)
    if (shard.index is None) == (not shard.join):
        raise ArgumentError("give either --shard.index I or --shard.join")
    if not out_dir.name:
        raise ArgumentError(f"--cfg.out_dir {args.cfg.out_dir!r} names no directory to make")
    blocks = out_dir.with_name(f"{out_dir.name}.targets")
    if shard.join:
        run_regression.check_out_dir(out_dir)
        joined = join_targets([Attributions.load(blocks / str(i)) for i in range(shard.count)])
        joined.save(out_dir)
        print(f"joined {shard.count} blocks of targets in {out_dir}")
        return
    chosen = run_regression.target_range(args.data)
    data = args.data
    source = open_rows(data.data_path, data.x_name, data.y_name, chosen)
    start, stop = target_shard(source.num_targets, shard.index, shard.count)
    first = data.target_start_ind
    run_regression.main(
        [
            *_without_shard(words),
            f"--data.target_start_ind={first + start}",
            f"--data.target_end_ind={first + stop}",
            f"--cfg.out_dir={blocks / str(shard.index)}",
        ]
    )


def _without_shard(words: Sequence[str]) -> list[str]:
    """Leave out --shard.index and --shard.count with their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.startswith("--shard."):
            kept.append(word)
        skip = not skip and word.startswith("--shard.") and "=" not in word
    return kept


if __name__ == "__main__":
    run(main)

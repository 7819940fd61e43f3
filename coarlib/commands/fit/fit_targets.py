"""Fit one block of the targets (one job of an array, one GPU of a node), or join the blocks.

    coar fit_targets STORE [FIT] --index I --count K     (K jobs, I = 0 … K-1)
    coar fit_targets STORE [FIT] --join --count K

where FIT are the arguments of run_regression. Block I goes to OUT.targets/I, all of them to OUT.
What a solver chooses for all targets together (ridge's λ) it chooses for each block; fix it
(--lam) where the blocks must agree with one fit to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.cluster.shards import join_targets, target_shard
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, run
from coarlib.commands.fit import run_regression
from coarlib.commands.fit.moments import SHARD, check_shard
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.errors import ArgumentError
from coarlib.regression import Attributions

COMMAND = Command(
    "fit_targets",
    __doc__,
    {**SHARD, **run_regression.ROWS, **run_regression.SOLVING},
    run_regression.IGNORED,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit one block of targets, or join all blocks."""
    args = COMMAND.parse(argv)
    check_shard(args)
    out_dir = Path(args.out or common.beside(args.store, "attributions"))
    if not out_dir.name:
        raise ArgumentError(f"--out {args.out!r} names no directory to make")
    blocks = out_dir.with_name(f"{out_dir.name}.targets")
    if args.join:
        run_regression.check_out_dir(out_dir)
        joined = join_targets([Attributions.load(blocks / str(i)) for i in range(args.count)])
        joined.save(out_dir)
        keep_arguments(args, out_dir)
        print(f"joined {args.count} blocks of targets in {out_dir}")
        print(next_step("report", out_dir))
        return
    source, _ = run_regression.rows_of(args)
    start, stop = target_shard(source.num_targets, args.index, args.count)
    first = run_regression.target_range(args).start
    regression = run_regression.COMMAND
    block = {key: getattr(args, key, param.default) for key, param in regression.params.items()}
    block |= {"targets": f"{first + start}:{first + stop}", "out": str(blocks / str(args.index))}
    given = args.given & set(block) - {"target_start_ind", "target_end_ind"} | {"targets"}
    run_regression.fit(Arguments(**block, given=given, sources=args.sources, command=regression))
    print(again(args, index=None, join=True))


if __name__ == "__main__":
    run(main)

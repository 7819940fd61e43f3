"""Compute gradient passes, which say what components do at a fraction of the rows.

    coar gradient_passes STORE --task digits --passes 64
    coar run_regression STORE

Each pass costs three forward passes over the examples (a row: one). They are kept in
STORE/gradient_passes, in blocks that are claimed, resumed and checked as rows are; run_regression
and attribute join them with the rows. Any number of workers may share the blocks by --claim.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coarlib.ablation import ComponentTask
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.checkers import slice_of
from coarlib.commands.components_of import component_task, output_of
from coarlib.commands.leaving import again, next_step
from coarlib.commands.store.make_dataset import WORKER
from coarlib.devices import resolve_device
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.filling.worker import FillOptions
from coarlib.gradient_passes import PassPlan, fill_passes, open_passes
from coarlib.gradient_passes.filling import plan_for
from coarlib.store import Store
from coarlib.tracking import tracked

_AS_WORKERS = ("claim", "claim_ttl", "claim_wait", "allow_other_task", "device", "threads", "log")
COMMAND = Command(
    "gradient_passes",
    __doc__,
    {
        "store": common.store(),
        "task": common.task(),
        "set": common.settings(),
        "passes": Param(Whole(1), "how many passes there are to be", default=64),
        "rows": common.rows("only these blocks of passes"),
        "fraction": Param(
            float, "share of components removed on average; default: as the store's rows"
        ),
        "block": Param(Whole(1), "passes in a block; default: 8"),
        "seed": Param(Whole(0), "seed of the passes' masks"),
        "output": common.output(),
        **{name: WORKER[name] for name in _AS_WORKERS},
        "dry_run": common.flag("say what would be computed, and stop"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the passes that the arguments name."""
    args = COMMAND.parse(argv)
    store = Store.open(args.store)
    if args.dry_run:
        print(f"{args.passes} gradient passes, as long as {3 * args.passes} rows of {args.store}")
        print(again(args))
        return
    task = component_task(args)
    options = FillOptions(
        claim=args.claim,
        claim_ttl=args.claim_ttl,
        claim_wait=args.claim_wait,
        allow_other_task=args.allow_other_task,
        ways_round=("allow_other_task",),
        origin={"task": args.task, "settings": args.set, "directory": str(Path.cwd())},
    )
    with tracked(args.log, f"{store.path}_passes", options.origin or {}):
        report = fill_passes(
            store,
            task,
            args.passes,
            resolve_device(args.device, args.threads),
            plan=_plan(args, store, task),
            blocks=None if args.rows is None else slice_of(args.rows),
            options=options,
        )
    kept = open_passes(store)
    print(
        f"{report.written} blocks of gradient passes computed, {report.skipped} were there "
        f"already; {kept.path if kept else ''} has {len(kept.completed_rows()) if kept else 0}"
    )
    if report.stopped:
        sys.exit(EXIT_ABANDONED if report.abandoned else EXIT_STOPPED)
    print(next_step("run_regression", args.store))


def _plan(args: Arguments, store: Store, task: ComponentTask) -> PassPlan | None:
    """Return the plan that the arguments say; None leaves it to the store."""
    given = {"seed": args.seed, "passes": args.block}
    given = {key: value for key, value in given.items() if value is not None}
    if args.fraction is None and not given and args.output is None:
        return None
    key = output_of(task, args.output)
    if args.fraction is not None:
        return PassPlan.for_fraction(args.fraction, output=key, **given)
    return replace(plan_for(store, task, key), output=key, **given)


if __name__ == "__main__":
    run(main)

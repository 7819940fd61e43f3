"""Attribute a model's outputs to its components, with as few forward passes as it takes.

    coar attribute digits --out out/digits --until 0.83
    coar attribute my_task.py:MyTask --out out/mine --budget 2000

Starts with a few gradient passes and trials (every example has an ablation of its own), which
judge by cross-validation, buys what is forecast to bring most for its cost (passes, trials,
leave-one-out), and stops at the wanted held-out correlation, the budget (in forward passes over
the examples) or the time.
--coarse tries layers or blocks as wholes first, then the members of those that matter. Whatever is
bought is kept: the same command goes on where it was stopped, and several share the work by
--claim. Writes OUT/attributions, OUT/purchases.json (what was bought, and why) and a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.ablation.hierarchy import LEVELS
from coarlib.autopilot import attribute
from coarlib.autopilot.choices import FIRST, Goal
from coarlib.autopilot.run import check_start
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.commands.components_of import component_task
from coarlib.commands.judge.report_notes import annotate
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.commands.own_classes import own_ablation
from coarlib.errors import ArgumentError, CoarlibError
from coarlib.report.inputs import gather
from coarlib.report.page import write_report
from coarlib.setups import shipped_file
from coarlib.store.spec import load_spec
from coarlib.tracking import tracked

FRACTION = 0.05
TASK = "a set-up's name, package.module:Class or file.py:Class"
COMMAND = Command(
    "attribute",
    __doc__,
    {
        "task": Param(str, TASK, required=True, positional=True),
        "out": common.out("directory for everything", required=True),
        "set": common.settings(),
        "until": Param(float, "stop at this held-out correlation"),
        "budget": Param(Whole(1), "stop at so many forward passes over the examples"),
        "minutes": Param(float, "stop buying after so many minutes"),
        "coarse": Param(
            Choice(LEVELS), "try groups of components first, then the members of those that matter"
        ),
        "fraction": Param(
            float, "share of components ablated; default: as the set-up's spec, or 0.05"
        ),
        "seed": common.seed("of the masks"),
        "device": common.device(),
        "claim": common.flag("share the work with others started so"),
        "log": common.log(),
        "dry_run": common.flag("say where it would start, and stop"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Attribute, and write the report."""
    args = COMMAND.parse(argv)
    out = Path(args.out)
    result = out / "attributions"
    fraction = _fraction(args)
    if (result / "datamodels.pt").exists():
        raise ArgumentError(f"{result} is there already; move it away to go on, or name another")
    if args.dry_run:
        Goal(args.until, args.budget, args.minutes)
        check_start(out, fraction, args.seed)
        print(
            f"{FIRST.passes} gradient passes, {FIRST.trials} trials and {FIRST.rows} ablations of "
            f"{fraction:.0%} of the components to start"
        )
        print(again(args))
        return
    origin = {"task": args.task, "settings": args.set, "directory": str(Path.cwd())}
    with tracked(args.log, out / "store", origin):
        found = attribute(
            component_task(args),
            out,
            until=args.until,
            budget=args.budget,
            minutes=args.minutes,
            coarse=args.coarse,
            fraction=fraction,
            seed=args.seed,
            device=args.device,
            share=args.claim,
            quiet=args.quiet,
            origin=origin,
        )
    step = next_step("evaluate", result, task=args.task, set=args.set)
    if args.claim and (result / "datamodels.pt").exists():
        print(f"{result} is there already: others that share the work were done first")
        print(step)
        return
    found.save(result)
    keep_arguments(args, out)
    print(found.held_out)
    print(f"cost: {found.cost}; {found.summary['autopilot']['seconds']:.0f} s")
    inputs = gather(str(result), str(out / "store"))
    annotate(inputs, args.task, own_ablation(args.set))
    print(f"report: {write_report(inputs, result / 'report.html', quiet=True)}")
    print(step)


def _fraction(args: Arguments) -> float:
    """Return what was given, or what the set-up's own spec ablates, or a twentieth."""
    if args.fraction is not None:
        return float(args.fraction)
    try:
        design = load_spec(shipped_file(f"{args.task}.json")).design
    except (CoarlibError, OSError):
        return FRACTION
    return FRACTION if design is None or design.keep_prob is None else 1 - design.keep_prob


if __name__ == "__main__":
    run(main)

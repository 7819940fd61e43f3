"""Compare attributions with baselines on fresh ablations, at several ablated fractions.

    coar evaluate OUT --task digits --fractions 0.05,0.1,0.2 --ablations 200

Writes evaluation.csv, evaluation.json, evaluation.png and cost.png (accuracy against cost), and
says what is better than the attributions beyond the paired interval; baselines are kept beside
them and not computed twice.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from coarlib.ablation import ComponentTask
from coarlib.baselines.evaluation import (
    BASELINES,
    Line,
    Scores,
    baseline,
    compare,
    differences,
    measure,
    table,
)
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.components_of import (
    allow_other_task,
    check_made_for,
    component_task,
    output_of,
)
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, ComponentError, ScoringError
from coarlib.files import whole_file
from coarlib.loading import load_npz
from coarlib.plots import plot_against_fraction
from coarlib.plots.fit_figures import correlation_against_cost
from coarlib.plots.style import panels_on, save_png
from coarlib.regression.attributions import Attributions

COMMAND = Command(
    "evaluate",
    __doc__,
    {
        "attributions": common.store("result directory of run_regression", "eval.attributions"),
        "task": common.task("eval.task"),
        "set": common.settings("eval.task_args"),
        "out": common.out(
            "where the table and the figure go; default: beside the attributions", "eval.out_dir"
        ),
        "fractions": Param(
            str,
            "ablated fractions α, comma-separated",
            default="0.05,0.1,0.2",
            also=("eval.fractions",),
        ),
        "ablations": Param(
            Whole(3), "fresh ablations at each fraction", default=100, also=("eval.rows", "rows")
        ),
        "baselines": Param(
            str,
            "comma-separated; all of " + ", ".join(BASELINES),
            default="all",
            also=("eval.baselines",),
        ),
        "output": common.output("eval.output"),
        "allow_other_task": allow_other_task(),
        "device": common.device("eval.device"),
        "dry_run": common.flag("say how many forward passes it would take, and stop"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and write the table."""
    args = COMMAND.parse(argv)
    fractions = _fractions(args.fractions)
    attributions = Attributions.load(args.attributions)
    if args.dry_run:
        count = args.ablations * len(fractions)
        print(f"{count} forward passes over the examples of {args.task}, and the baselines'")
        print(again(args))
        return
    task = component_task(args)
    task.prepare(resolve_device(args.device))
    check_made_for(attributions, task, args)
    key = output_of(task, args.output)
    out = Path(args.out or common.beside(args.attributions, "evaluation"))
    args.out = str(out)
    out.mkdir(parents=True, exist_ok=True)
    trained_at = 1 - float(np.mean(attributions.mean_mask))
    cost = attributions.cost
    fitted = Scores(attributions.weight, cost.passes, not cost.complete)
    methods = {"COAR": fitted}
    for name in BASELINES if args.baselines == "all" else args.baselines.split(","):
        try:
            methods[name] = _kept_baseline(name, task, key, out)
        except ComponentError as error:
            print(f"{name} is left out: {error}")
    lines = compare(
        methods,
        fractions,
        args.ablations,
        lambda masks: measure(task, masks, key, "fresh ablations"),
        len(task.component_set),
    )
    _write(out, lines, task, trained_at)
    keep_arguments(args, out)
    print(table(lines))
    print(differences(lines))
    print(
        f"mean Pearson correlation over {task.num_examples} targets [95% interval over "
        f"{args.ablations} fresh ablations]; passes: forward passes over the "
        "examples that went into it, a backward pass counting as two\n"
        f"table and figures: {out}"
    )
    print(next_step("report", args.attributions, evaluation=out / "evaluation.json"))


def _fractions(text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError as error:
        raise ArgumentError(
            f"--fractions must be numbers, comma-separated, not {text!r}"
        ) from error


def _kept_baseline(name: str, task: ComponentTask, key: str, out: Path) -> Scores:
    """Compute a baseline, or read it if it was kept for this very model and these examples."""
    path = out / f"{name}_{key}_{task.identity()}.npz"
    if path.is_file():
        kept = load_npz(path, ScoringError)
        return Scores(kept["scores"], int(kept["forward_passes"]))
    found = baseline(name, task, key)
    with whole_file(path) as stream:
        np.savez(stream, scores=found.scores, forward_passes=found.forward_passes)
    return found


def _write(out: Path, lines: Sequence[Line], task: ComponentTask, trained_at: float) -> None:
    rows = [asdict(line) for line in lines]
    with (out / "evaluation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)])
        writer.writeheader()
        writer.writerows(rows)
    content = {"components": len(task.component_set), "targets": task.num_examples, "lines": rows}
    (out / "evaluation.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    fractions = list(dict.fromkeys(line.fraction for line in lines))
    names = list(dict.fromkeys(line.method for line in lines))
    plot_against_fraction(
        out / "evaluation.png",
        fractions,
        {name: [line.pearson for line in lines if line.method == name] for name in names},
        {
            name: [(line.pearson_low, line.pearson_high) for line in lines if line.method == name]
            for name in names
        },
        trained_at=None if np.isnan(trained_at) else trained_at,
        title=f"{len(task.component_set)} components, {task.num_examples} targets",
    )
    _draw_costs(out / "cost.png", lines, fractions, names)


def _draw_costs(
    path: Path, lines: Sequence[Line], fractions: Sequence[float], names: Sequence[str]
) -> None:
    """Draw accuracy against cost, a panel a fraction, all in one line."""
    with panels_on(None, 1, len(fractions), (5.0 * len(fractions), 4)) as (figure, grid):
        for panel, fraction in zip(grid[0], fractions, strict=True):
            here = {line.method: line for line in lines if line.fraction == fraction}
            correlation_against_cost(
                {name: ([here[name].forward_passes], [here[name].pearson]) for name in names},
                {name: [(here[name].pearson_low, here[name].pearson_high)] for name in names},
                title=f"α = {fraction:g}",
                axes=panel,
            )
        save_png(figure, path)


if __name__ == "__main__":
    run(main)

"""Compare attributions with baselines on fresh ablations, at several ablated fractions.

    python -m estimate.evaluate --eval.task digits --eval.attributions OUT \\
        --eval.fractions 0.05,0.1,0.2 --eval.rows 200 --eval.out_dir out/digits/evaluation

The task is a set-up's name or what --expt.task of make_dataset takes. Writes evaluation.csv,
evaluation.json and evaluation.png; baselines are kept beside them and not computed twice.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from coarlib.ablation import ComponentTask
from coarlib.baselines.evaluation import BASELINES, Line, Scores, baseline, compare, measure, table
from coarlib.commands.arguments import Param, Whole, parse, run
from coarlib.commands.store.components import component_task, output_of
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, ComponentError
from coarlib.files import whole_file
from coarlib.regression.attributions import Attributions
from coarlib.report.plots import plot_against_fraction

SECTIONS = {
    "eval": {
        "task": Param(str, "set-up, module:Class or file.py:Class", required=True),
        "task_args": Param(str, "JSON object with the task's settings", default="{}"),
        "attributions": Param(str, "result directory of run_regression", required=True),
        "out_dir": Param(str, "where the table and the figure go", required=True),
        "fractions": Param(str, "ablated fractions α, by commas", default="0.05,0.1,0.2"),
        "rows": Param(Whole(3), "fresh ablations at each fraction", default=100),
        "baselines": Param(str, "by commas; all of " + ", ".join(BASELINES), default="all"),
        "output": Param(str, "array of the store that was fitted; default: the task's only one"),
        "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and write the table."""
    args = parse(__doc__ or "", SECTIONS, argv).eval
    fractions = _fractions(args.fractions)
    attributions = Attributions.load(args.attributions)
    task = component_task(args.task, args.task_args)
    task.prepare(resolve_device(args.device))
    key = output_of(task, args.output, "--eval.output")
    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    trained_at = 1 - float(np.mean(attributions.mean_mask))
    fitted = Scores(attributions.weight, int(attributions.summary.get("num_rows", 0)))
    methods = {"COAR": fitted}
    for name in BASELINES if args.baselines == "all" else args.baselines.split(","):
        try:
            methods[name] = _kept_baseline(name, task, key, out)
        except ComponentError as error:
            print(f"{name} is left out: {error}")
    lines = compare(
        methods,
        fractions,
        args.rows,
        lambda masks: measure(task, masks, key, "fresh ablations"),
        len(task.component_set),
    )
    _write(out, lines, task, trained_at)
    print(table(lines))
    print(
        f"mean Pearson correlation over {task.num_examples} targets [95% interval over "
        f"{args.rows} fresh ablations]; passes: forward passes over the examples\n"
        f"table and figure: {out}"
    )


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--eval.fractions must be numbers by commas, not {text!r}") from error


def _kept_baseline(name: str, task: ComponentTask, key: str, out: Path) -> Scores:
    """Compute a baseline, or read it if it was kept for this very model and these examples."""
    path = out / f"{name}_{key}_{task.identity()}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return Scores(file["scores"], int(file["forward_passes"]))
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


if __name__ == "__main__":
    run(main)

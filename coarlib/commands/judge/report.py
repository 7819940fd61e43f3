"""Turn a store and its attributions into one HTML file to look at, send and believe.

    coar report RESULT
    coar report RESULT --store STORE --task my_task.py --set seed=1 --open
    coar report A B

RESULT is a result of run_regression, a directory that holds one in attributions/ (and a store in
store/), a store, or an explained training history; several are shown side by side. Results of
score_lds and evaluate that lie in RESULT are shown too. Images, labels and layer names come from
the set-up that the store recorded, or from --task, --examples and --components.
"""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, run
from coarlib.commands.checkers import Paths
from coarlib.commands.judge.report_notes import annotate, annotate_as_recorded, annotate_history
from coarlib.commands.leaving import after_rows, again, keep_arguments, next_step
from coarlib.commands.own_classes import own_ablation
from coarlib.errors import ArgumentError
from coarlib.report.inputs import ReportInputs, gather
from coarlib.report.methods import read_baseline
from coarlib.report.notes import FeatureNotes, read_groups, read_notes
from coarlib.report.page import write_page, write_report
from coarlib.report.records import read_evaluation, read_lds, read_steps
from coarlib.report.side_by_side import build_comparison

COMMAND = Command(
    "report",
    __doc__,
    {
        "result": Param(
            Paths(),
            "attributions, store or explained history; two or more are shown side by side",
            required=True,
            positional=True,
            many=True,
        ),
        "store": Param(str, "the rows: a store or a .beton; default: those that were fitted"),
        "out": common.out("the HTML file; default: report.html in RESULT", "to"),
        "open": common.flag("show it in the browser"),
        "x_name": common.x_name(),
        "y_name": common.y_name(),
        "targets": Param(common.Range(), "which targets were fitted: A:B, or N for 0:N"),
        "examples": Param(str, ".npz (images, labels, texts) or .json of the targets"),
        "training_examples": Param(str, "the same of the features, where these are examples"),
        "components": Param(str, "JSON of ComponentSet.to_json: names of the features"),
        "task": common.task(required=False, note=", to take images and names from"),
        "set": common.settings(),
        "baselines": Param(str, "NAME=FILE,…: scores [N, T] or leave-one-out stores to compare"),
        "lds": Param(str, "NAME=FILE.json,…: results of score_lds"),
        "evaluation": Param(str, "evaluation.json of evaluate"),
        "history": Param(str, "directory of an explained training history"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report, and show it if asked to."""
    args = COMMAND.parse(argv)
    results = list(args.result.values())
    if len(results) > 1:
        path = _compare(args, results)
    else:
        inputs = _gather(args, results[0])
        path = write_report(inputs, args.out or Path(results[0]) / "report.html", quiet=False)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.open and not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser was found; open {path} by hand", file=sys.stderr)
    keep_arguments(args, path)
    print(again(args, open=True) if len(results) > 1 else _next(args, inputs))


def _gather(args: Arguments, result: str) -> ReportInputs:
    """Collect what the arguments say about one result."""
    inputs = gather(
        result,
        args.store,
        mask_key=args.x_name,
        output_key=args.y_name,
        targets=common.slice_of(args.targets or ":"),
    )
    if args.task is not None:
        annotate(inputs, args.task, own_ablation(args.set))
    else:
        annotate_as_recorded(inputs, result)
    if args.examples is not None:
        inputs.examples = read_notes(args.examples)
    if args.training_examples is not None:
        inputs.features = FeatureNotes(notes=read_notes(args.training_examples))
    if args.components is not None:
        inputs.features = FeatureNotes.of_components(read_groups(args.components))
    given = {name: read_baseline(path) for name, path in _named(args.baselines, "baselines")}
    inputs.baselines = {**inputs.baselines, **given}
    inputs.lds = [*inputs.lds, *(read_lds(path, name) for name, path in _named(args.lds, "lds"))]
    if args.evaluation is not None:
        inputs.evaluation = read_evaluation(args.evaluation)
    if args.history is not None:
        inputs.steps = read_steps(args.history)
        if inputs.attributions is None:
            annotate_history(inputs, args.history)
    return inputs


def _compare(args: Arguments, results: Sequence[str]) -> Path:
    """Write the page of several results beside each other."""
    told = {"store", "history", "lds", "evaluation", "baselines"} & args.given
    if told:
        raise ArgumentError(f"--{sorted(told)[0]} goes with one RESULT, not with {len(results)}")
    runs = [_gather(args, result) for result in results]
    path = args.out or Path(results[0]) / "comparison.html"
    return write_page(lambda: build_comparison(runs), path)


def _next(args: Arguments, inputs: ReportInputs) -> str:
    if args.task is not None and inputs.attributions is not None:
        return next_step("evaluate", next(iter(args.result.values())), task=args.task, set=args.set)
    if inputs.store is not None and inputs.attributions is not None:
        return next_step("power", inputs.store.path, y_name=args.y_name)
    if inputs.store is not None:
        return after_rows(inputs.store)
    return again(args, open=True)


def _named(text: str | None, argument: str) -> list[tuple[str, str]]:
    """Read ``NAME=FILE,FILE,…``; a file without a name is called by its stem.

    Raises
    ------
    ArgumentError
        If two have one name.
    """
    found = []
    for word in (text or "").split(","):
        name, equals, path = word.rpartition("=")
        if path:
            found.append((name if equals else Path(path).stem, path))
    names = [name for name, _ in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ArgumentError(f"--{argument} calls several {twice[0]}; give each a name of its own")
    return found


if __name__ == "__main__":
    run(main)

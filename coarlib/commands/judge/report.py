"""Turn a store and its attributions into one HTML file to look at, send and believe.

    coar report RESULT
    coar report RESULT --store STORE --task my_task.py --set seed=1 --open

RESULT is a result of run_regression, a directory that holds one in attributions/ (and a store in
store/), a store, or an explained training history. Results of score_lds and evaluate that lie in
RESULT are shown too. Images, labels and layer names come from the set-up that the store recorded,
or from --task, --examples and --components.
"""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentTask
from coarlib.baselines.components import leave_one_out
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, run
from coarlib.commands.leaving import after_rows, again, keep_arguments, next_step
from coarlib.commands.own_classes import own_ablation
from coarlib.errors import ArgumentError, CoarlibError
from coarlib.report.inputs import ReportInputs, gather
from coarlib.report.notes import (
    FeatureNotes,
    Notes,
    as_pictures,
    groups_from_json,
    read_groups,
    read_notes,
)
from coarlib.report.page import write_report
from coarlib.report.provenance import read_run
from coarlib.report.records import read_evaluation, read_lds, read_steps
from coarlib.scoring.score_files import load_scores
from coarlib.setups import is_shipped, load
from coarlib.store import Store

COMMAND = Command(
    "report",
    __doc__,
    {
        "result": common.store("attributions, store or explained history"),
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
    inputs = gather(
        args.result,
        args.store,
        mask_key=args.x_name,
        output_key=args.y_name,
        targets=common.slice_of(args.targets or ":"),
    )
    if args.task is not None:
        _annotate(inputs, args.task, own_ablation(args.set))
    else:
        _annotate_as_recorded(inputs)
    if args.examples is not None:
        inputs.examples = read_notes(args.examples)
    if args.training_examples is not None:
        inputs.features = FeatureNotes(notes=read_notes(args.training_examples))
    if args.components is not None:
        inputs.features = FeatureNotes(read_groups(args.components))
    inputs.baselines = {name: _scores(path) for name, path in _named(args.baselines)}
    inputs.lds = [*inputs.lds, *(read_lds(path, name) for name, path in _named(args.lds))]
    if args.evaluation is not None:
        inputs.evaluation = read_evaluation(args.evaluation)
    if args.history is not None:
        inputs.steps = read_steps(args.history)
    path = write_report(inputs, args.out or Path(args.result) / "report.html", quiet=False)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.open and not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser was found; open {path} by hand", file=sys.stderr)
    keep_arguments(args, path)
    print(_next(args, inputs))


def _next(args: Arguments, inputs: ReportInputs) -> str:
    if args.task is not None and inputs.attributions is not None:
        return next_step("evaluate", args.result, task=args.task, set=args.set)
    if inputs.store is not None and inputs.attributions is not None:
        return next_step("power", inputs.store.path, y_name=args.y_name)
    if inputs.store is not None:
        return after_rows(inputs.store)
    return again(args, open=True)


def _named(text: str | None) -> list[tuple[str, str]]:
    """Read ``NAME=FILE,FILE,…``; a file without a name is called by its stem."""
    found = []
    for word in (text or "").split(","):
        name, equals, path = word.rpartition("=")
        if path:
            found.append((name if equals else Path(path).stem, path))
    return found


def _scores(path: str) -> NDArray[Any]:
    """Scores [N, T] of a file, or the effects that a leave-one-out store holds."""
    if not (Path(path) / "_completed.npy").is_file():
        return load_scores(path)
    store = Store.open(path)
    rows = store.completed_rows()
    masks, values = (store.array(key)[rows] for key in (store.masks_name(), store.outputs_name()))
    return leave_one_out(np.asarray(masks), np.asarray(values))


def _annotate_as_recorded(inputs: ReportInputs) -> None:
    """Take images and names from the set-up that filled the store, if it is one of coarlib's.

    Only these are imported: a store from elsewhere must not choose what code runs here.
    """
    recorded = {} if inputs.store is None else read_run(inputs.store).tasks
    for name, origin in recorded.items():
        settings = origin.get("settings")
        if not isinstance(settings, dict):
            continue
        if "components" in settings:
            inputs.features = FeatureNotes(groups_from_json(settings["components"]))
        settings = _resolved(settings, str(origin.get("directory", "")))
        if not is_shipped(name) or settings is None:
            continue
        try:
            _annotate(inputs, name, settings)
        except (CoarlibError, OSError) as error:
            print(f"note: no images and names from {name}: {error}", file=sys.stderr)


def _resolved(settings: Mapping[str, Any], directory: str) -> dict[str, Any] | None:
    """Find files that settings name from where the worker ran; None if one is gone."""
    found = dict(settings)
    found.pop("components", None)
    for key, value in settings.items():
        if not key.endswith("_path") or not isinstance(value, str):
            continue
        places = [Path(value), Path(directory) / value]
        there = next((place for place in places if place.exists()), None)
        if there is None:
            return None
        found[key] = str(there)
    return found


def _annotate(inputs: ReportInputs, name: str, settings: Mapping[str, Any]) -> None:
    task = load(name, settings, ".")
    if not isinstance(task, ComponentTask):
        raise ArgumentError(f"{name} ablates no components, so it has no images and names to show")
    inputs.features = FeatureNotes(groups_from_json(task.components(task.model()).to_json()))
    examples = task.examples()
    first, targets = examples.inputs[0], examples.targets
    images = as_pictures(first.numpy()) if first.ndim == 4 else None
    labels = _labels(targets, task.class_names) if targets.ndim == 1 else None
    inputs.examples = Notes(images, labels, task.texts())


def _labels(classes: torch.Tensor, names: Sequence[str]) -> list[str]:
    """Name the classes, by number where a name is missing."""
    known = dict(enumerate(names))
    return [known.get(int(c), str(int(c))) for c in classes]


if __name__ == "__main__":
    run(main)

"""Turn a store and its attributions into one HTML file to look at, send and believe.

    coar report OUT [--store STORE] [--open]

OUT is a result of run_regression, a directory that holds one in attributions/ (and a store in
store/), a store, or an explained training history. Results of score_lds and evaluate that lie in
OUT are shown too. Images, labels and layer names come from the set-up that the store recorded, or
from --task, --examples and --components.
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
from coarlib.commands.arguments import PLAIN, Boolean, Param, parse, run
from coarlib.commands.store.make_dataset import task_settings
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
from coarlib.store import Store
from coarlib.task import load_task

POSITIONAL = {"out": Param(str, "attributions, store or explained history", required=True)}
SECTIONS = {
    PLAIN: {
        "store": Param(str, "the rows: a store or a .beton; default: those that were fitted"),
        "to": Param(str, "the HTML file; default: report.html in OUT"),
        "open": Param(Boolean(), "show it in the browser", default=False),
        "x_name": Param(str, "the mask array of the store; default: the design's"),
        "y_name": Param(str, "the output array of the store; default: the only real-valued one"),
        "targets": Param(str, "which targets were fitted, START:STOP", default=":"),
        "examples": Param(str, ".npz (images, labels, texts) or .json of the targets"),
        "training_examples": Param(str, "the same of the features, where these are examples"),
        "components": Param(str, "JSON of ComponentSet.to_json: names of the features"),
        "task": Param(str, "module:Class or file.py:Class to take images and names from"),
        "task_args": Param(str, "JSON object with the task's settings", default="{}"),
        "baselines": Param(str, "NAME=FILE,…: scores [N, T] or leave-one-out stores to compare"),
        "lds": Param(str, "NAME=FILE.json,…: results of score_lds"),
        "evaluation": Param(str, "evaluation.json of evaluate"),
        "history": Param(str, "directory of an explained training history"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report, and show it if asked to."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    options = args.options
    inputs = gather(
        args.out,
        options.store,
        mask_key=options.x_name,
        output_key=options.y_name,
        targets=_targets(options.targets),
    )
    if options.task is not None:
        _annotate(inputs, options.task, task_settings(options.task_args, "--task_args"))
    else:
        _annotate_as_recorded(inputs)
    if options.examples is not None:
        inputs.examples = read_notes(options.examples)
    if options.training_examples is not None:
        inputs.features = FeatureNotes(notes=read_notes(options.training_examples))
    if options.components is not None:
        inputs.features = FeatureNotes(read_groups(options.components))
    inputs.baselines = {name: _scores(path) for name, path in _named(options.baselines)}
    inputs.lds = [*inputs.lds, *(read_lds(path, name) for name, path in _named(options.lds))]
    if options.evaluation is not None:
        inputs.evaluation = read_evaluation(options.evaluation)
    if options.history is not None:
        inputs.steps = read_steps(options.history)
    path = write_report(inputs, options.to or Path(args.out) / "report.html", quiet=False)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser was found; open {path} by hand", file=sys.stderr)


def _targets(text: str) -> slice:
    start, colon, stop = text.partition(":")
    try:
        if colon:
            return slice(int(start) if start else None, int(stop) if stop else None)
    except ValueError:
        pass
    raise ArgumentError(f"--targets must be START:STOP, not {text!r}")


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
        if not name.startswith("estimate.") or settings is None:
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
    task = load_task(name, settings, ".")
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

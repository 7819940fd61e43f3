"""What a report calls things and shows of them: images, texts, names, from the task or set-up.

Without being asked only coarlib's own set-ups are imported: a store, or the arguments that lie
beside a result, must not choose what code runs here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coarlib import setups
from coarlib.ablation import ComponentTask
from coarlib.commands.leaving import ARGUMENTS_FILE
from coarlib.errors import ArgumentError, CoarlibError
from coarlib.history.setups import HistorySetup
from coarlib.loading import load_yaml
from coarlib.report.inputs import ReportInputs
from coarlib.report.notes import FeatureNotes, Notes, as_pictures
from coarlib.report.provenance import read_run
from coarlib.report.task_notes import named_classes, take_from

FEWEST_PIXELS = 16  # numbers of one example that may be a square grey image


def annotate(inputs: ReportInputs, name: str, settings: Mapping[str, Any]) -> None:
    """Take images, texts and names from the task called ``name``."""
    task = setups.load(name, settings, ".")
    if not isinstance(task, ComponentTask):
        raise ArgumentError(f"{name} ablates no components, so it has no images and names to show")
    take_from(inputs, task)


def annotate_as_recorded(inputs: ReportInputs, result: str | Path) -> None:
    """Take them from the set-up that filled the store or explained the history."""
    if inputs.steps is not None:
        annotate_history(inputs, result)
        return
    recorded = {} if inputs.store is None else read_run(inputs.store).tasks
    for name, origin in recorded.items():
        settings = origin.get("settings")
        if not isinstance(settings, dict):
            continue
        if "components" in settings:
            inputs.features = FeatureNotes.of_components(settings["components"])
        settings = _resolved(settings, str(origin.get("directory", "")))
        if not setups.is_shipped(name) or settings is None:
            continue
        try:
            annotate(inputs, name, settings)
        except (CoarlibError, OSError) as error:
            print(f"note: no images and names from {name}: {error}", file=sys.stderr)


def annotate_history(inputs: ReportInputs, explanation: str | Path) -> None:
    """Take images and labels from the set-up that explain was given."""
    said = Path(explanation) / ARGUMENTS_FILE
    if inputs.steps is None or not said.is_file():
        return
    try:
        given = load_yaml(said, ArgumentError)
        name, settings = given.get("task"), given.get("set") or {}
        shipped = setups.names(setups.HISTORY_FILE)
        if not {name, f"{name}_path"} & set(shipped):
            return
        make = setups.find(name, HistorySetup, setups.HISTORY_FILE, ArgumentError)
        setup = setups.build(make, settings, f"the set-up {name}", ArgumentError)
        train, test = setup.train_samples(), setup.test_samples()
    except (CoarlibError, OSError, AttributeError) as error:
        print(f"note: no images and names from {said}: {error}", file=sys.stderr)
        return
    count = inputs.steps.num_points
    inputs.model = type(setup.model()).__name__.replace("Sequential", "")
    inputs.examples = _notes(test[0][:count], test[1][:count])
    inputs.features = FeatureNotes(notes=_notes(*train))


def _notes(samples: torch.Tensor, targets: torch.Tensor) -> Notes:
    """Show samples as images where they look like some, with labels where those are classes."""
    side = int(samples[0].numel() ** 0.5)
    images = None
    if samples.ndim == 4:
        images = as_pictures(samples.numpy())
    elif samples.is_floating_point() and side * side == samples[0].numel() >= FEWEST_PIXELS:
        images = as_pictures(samples.reshape(len(samples), side, side).numpy())
    classes = targets.ndim == 1 and not targets.is_floating_point()
    texts = None
    if images is None and samples.ndim == 2 and not samples.is_floating_point():
        texts = [" ".join(map(str, row)) for row in samples.tolist()]
    return Notes(images, named_classes(targets, ()) if classes else None, texts)


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

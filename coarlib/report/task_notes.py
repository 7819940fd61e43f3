"""What a task says of itself: its model's name, its components, its examples' images or texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coarlib.ablation import ComponentTask
from coarlib.report.inputs import ReportInputs
from coarlib.report.notes import FeatureNotes, Notes, as_pictures

__all__ = ["named_classes", "take_from"]


def take_from(inputs: ReportInputs, task: ComponentTask) -> None:
    """Take images, texts and names from a task."""
    model = task.model()
    inputs.features = FeatureNotes.of_components(task.components(model).to_json())
    inputs.model = type(model).__name__
    examples = task.examples()
    first, targets = examples.inputs[0], examples.targets
    images = as_pictures(first.numpy()) if first.ndim == 4 else None
    labels = named_classes(targets, task.class_names) if targets.ndim == 1 else None
    inputs.examples = Notes(images, labels, task.texts())


def named_classes(classes: torch.Tensor, names: Sequence[str]) -> list[str]:
    """Name the classes, by number where a name is missing."""
    known = dict(enumerate(names))
    return [known.get(int(c), str(int(c))) for c in classes]

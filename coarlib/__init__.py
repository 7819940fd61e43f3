"""coarlib: counterfactual attribution at scale.

A counterfactual run is a row: one mask and the outputs measured under it. The rooms make rows,
keep rows, turn rows into attributions and judge attributions; this is their front door::

    import coarlib as cl

    task = cl.ablate(model, (images, labels), components="conv_filter")
    store = cl.Store.create("out/store", task, rows=3000, keep_prob=0.95)
    cl.fill(store, task)
    found = cl.fit(store)

Names are imported when they are used: ``import coarlib`` alone needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coarlib.explorer import opens_with
from coarlib.version import __version__

if TYPE_CHECKING:
    from coarlib.ablation import ComponentSet, ComponentTask, Examples, ablate, find_components
    from coarlib.api import explain, fill, fit, lds_bank
    from coarlib.autopilot import attribute
    from coarlib.errors import CoarlibError
    from coarlib.history import TrainingLoss, record
    from coarlib.masks import MaskDesign
    from coarlib.metagradient import metagradients_of_seeds
    from coarlib.regression import Attributions, HeldOut
    from coarlib.retraining import RetrainTask, Trainer
    from coarlib.scoring import LDSResult, compare, correlate, lds, noise_ceiling
    from coarlib.store import Store
    from coarlib.task import Task

__all__ = [
    "Attributions",
    "CoarlibError",
    "ComponentSet",
    "ComponentTask",
    "Examples",
    "HeldOut",
    "LDSResult",
    "MaskDesign",
    "RetrainTask",
    "Store",
    "Task",
    "Trainer",
    "TrainingLoss",
    "__version__",
    "ablate",
    "attribute",
    "compare",
    "correlate",
    "explain",
    "fill",
    "find_components",
    "fit",
    "lds",
    "lds_bank",
    "metagradients_of_seeds",
    "noise_ceiling",
    "record",
]

_ROOMS = {
    "coarlib.ablation": ("ComponentSet", "ComponentTask", "Examples", "ablate", "find_components"),
    "coarlib.api": ("explain", "fill", "fit", "lds_bank"),
    "coarlib.autopilot": ("attribute",),
    "coarlib.errors": ("CoarlibError",),
    "coarlib.masks": ("MaskDesign",),
    "coarlib.metagradient": ("metagradients_of_seeds",),
    "coarlib.history": ("TrainingLoss", "record"),
    "coarlib.regression": ("Attributions", "HeldOut"),
    "coarlib.retraining": ("RetrainTask", "Trainer"),
    "coarlib.scoring": ("LDSResult", "compare", "correlate", "lds", "noise_ceiling"),
    "coarlib.store": ("Store",),
    "coarlib.task": ("Task",),
}
_OPEN = ("plots",)  # rooms that are part of the door as they are
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def _explore(result: Any, **options: Any) -> Any:
    return importlib.import_module("coarlib.report.inline").explore(result, **options)


opens_with(_explore)


def __getattr__(name: str) -> Any:
    if name in _OPEN:
        return importlib.import_module(f"coarlib.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'coarlib' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

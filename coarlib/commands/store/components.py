"""Print the components of a set-up: which mask entries stand for which slices of the model.

    coar components STORE
    python -m estimate.components --components.task digits
    python -m estimate.components --components.task cifar_resnet \\
        --components.task_args '{"model_path": "m.pt", "beton_path": ""}' --components.index 700

The table has one line a parameter. A store keeps the table of the task that filled it; given both,
they are compared. With --components.out it is written as JSON, from which
coarlib.ablation.ComponentSet.from_json restores it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coarlib.ablation import ComponentSet, ComponentTask
from coarlib.commands.arguments import Param, parse, run
from coarlib.commands.store.make_dataset import task_settings
from coarlib.errors import ArgumentError, StoreError
from coarlib.store import Store
from coarlib.store.components import first_difference, read_components
from coarlib.task import load_task

POSITIONAL = {"store": Param(str, "a store, whose own table is printed")}
SECTIONS = {
    "components": {
        "task": Param(str, "set-up, module:Class or file.py:Class"),
        "task_args": Param(str, "JSON object with the task's settings", default="{}"),
        "index": Param(int, "say what this one component is, instead of printing the table"),
        "out": Param(str, "write the component set to this JSON file"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or one component."""
    found = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    args = found.components
    components = _components(found.store, args.task, args.task_args)
    if args.out is not None:
        Path(args.out).write_text(json.dumps(components.to_json(), indent=1), encoding="utf-8")
        print(f"wrote {args.out} ({len(components)} components)")
    if args.index is not None:
        group, _ = components.locate(args.index)
        print(f"{args.index}: {components.name(args.index)} ({group.kind}, axis {group.axis})")
    elif args.out is None:
        print(components.table())


def _components(store: str | None, name: str | None, settings: str) -> ComponentSet:
    """Take the components of a store, of a task, or of both, which must agree."""
    kept = None if store is None else read_components(Store.open(store).path)
    if name is not None:
        task = component_task(name, settings)
        components = task.components(task.model())
        if kept is not None and (found := first_difference(kept, _plain(components))):
            raise StoreError(f"the rows of {store} ablate other components than {name}: {found}")
        return components
    if kept is not None:
        return ComponentSet.from_json(kept)
    if store is not None:
        raise StoreError(
            f"{store} holds no component table (no component task has filled it); give "
            "--components.task"
        )
    raise ArgumentError("give a store, or a task (--components.task)")


def _plain(components: ComponentSet) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = json.loads(json.dumps(components.to_json()))
    return plain


def component_task(name: str, settings: str) -> ComponentTask:
    """Build the component task of a set-up, or any other one by module or file.

    Parameters
    ----------
    name : str
        ``digits``, ``package.module:Class`` or ``file.py:Class``.
    settings : str
        JSON object with the keyword arguments of the class.

    Raises
    ------
    ArgumentError
        If the settings are not a JSON object, or the task ablates no components.
    """
    content = task_settings(settings, "task_args")
    short = name.isidentifier() and importlib.util.find_spec(f"estimate.{name}") is not None
    task = load_task(f"estimate.{name}.task" if short else name, content, ".")
    if not isinstance(task, ComponentTask):
        raise ArgumentError(f"{name} ablates no components")
    return task


def output_of(task: ComponentTask, key: str | None, flag: str) -> str:
    """Return the output to work on: the given one, or the task's only one.

    Raises
    ------
    ArgumentError
        Naming the argument ``flag``, if the task has no such output, or several and none is named.
    """
    if key is None and len(task.outputs) == 1:
        return next(iter(task.outputs))
    if key is None or key not in task.outputs:
        raise ArgumentError(f"{flag} must be one of {', '.join(task.outputs)}")
    return key


if __name__ == "__main__":
    run(main)

"""Print the components of a set-up: which mask entries stand for which slices of the model.

    python -m estimate.components --components.task digits
    python -m estimate.components --components.task cifar_resnet \\
        --components.task_args '{"model_path": "m.pt", "beton_path": ""}' --components.index 700

The table has one line a parameter. With --components.out it is written as JSON, from which
coarlib.ablation.ComponentSet.from_json restores it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from coarlib.ablation import ComponentTask
from coarlib.commandline import Param, parse, run
from coarlib.errors import ArgumentError
from coarlib.task import load_task

SECTIONS = {
    "components": {
        "task": Param(str, "set-up, module:Class or file.py:Class", required=True),
        "task_args": Param(str, "JSON object with the task's settings", default="{}"),
        "index": Param(int, "say what this one component is, instead of printing the table"),
        "out": Param(str, "write the component set to this JSON file"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or one component."""
    args = parse(__doc__ or "", SECTIONS, argv).components
    task = component_task(args.task, args.task_args)
    components = task.components(task.model())
    if args.out is not None:
        Path(args.out).write_text(json.dumps(components.to_json(), indent=1), encoding="utf-8")
        print(f"wrote {args.out} ({len(components)} components)")
    if args.index is not None:
        group, _ = components.locate(args.index)
        print(f"{args.index}: {components.name(args.index)} ({group.kind}, axis {group.axis})")
    elif args.out is None:
        print(components.table())


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
    try:
        content = json.loads(settings)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"the task's settings are not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError("the task's settings must be a JSON object")
    short = name.isidentifier() and (Path(__file__).parent / name / "task.py").is_file()
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

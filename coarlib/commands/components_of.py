"""What commands about components ask of a task."""

from __future__ import annotations

from coarlib.ablation import ComponentTask
from coarlib.commands.arguments import Arguments
from coarlib.commands.common import load_task
from coarlib.errors import ArgumentError


def component_task(args: Arguments) -> ComponentTask:
    """Build the component task that ``--task`` and ``--set`` say.

    Raises
    ------
    ArgumentError
        If the task ablates no components.
    """
    found = load_task(args)
    if not isinstance(found, ComponentTask):
        raise ArgumentError(f"{args.task} ablates no components")
    return found


def output_of(made: ComponentTask, key: str | None) -> str:
    """Return the output to work on: the given one, or the task's only one.

    Raises
    ------
    ArgumentError
        If the task has no such output, or several and none is named.
    """
    if key is None and len(made.outputs) == 1:
        return next(iter(made.outputs))
    if key is None or key not in made.outputs:
        raise ArgumentError(f"--output must be one of {', '.join(made.outputs)}")
    return key

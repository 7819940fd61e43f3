"""What commands about components ask of a task."""

from __future__ import annotations

from coarlib.ablation import ComponentTask
from coarlib.commands.arguments import Arguments, Param
from coarlib.commands.common import flag, load_task
from coarlib.errors import ArgumentError
from coarlib.regression.attributions import Attributions


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


def check_made_for(found: Attributions, made: ComponentTask, args: Arguments) -> None:
    """Refuse attributions of another model, examples, components, outputs or way of ablating.

    Raises
    ------
    ArgumentError
        If the rows they were fitted on were made by another task than the prepared one, and
        ``--allow_other_task`` does not say that this is meant.
    """
    known = found.summary.get("task_identities") or []
    mine = [made.adopt(one) for one in reversed(known)][-1:]  # the settled one counts last
    if known and mine[0] not in (None, *known) and not args.allow_other_task:
        raise ArgumentError(
            f"{args.attributions} was fitted on rows of another task than {args.task}: other "
            "weights, examples, components, outputs, precision or way of ablating; give the "
            "settings of its store, or --allow_other_task"
        )


def allow_other_task() -> Param:
    """Return the argument that lets :func:`check_made_for` pass."""
    return flag("use attributions of another model, examples or way of ablating all the same")

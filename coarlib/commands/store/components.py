"""Print the components of a set-up: which mask entries stand for which slices of the model.

    coar components STORE
    coar components --task digits
    coar components --task cifar_resnet --set model_path=m.pt --index 700

The table has one line a parameter. A store keeps the table of the task that filled it; given both,
they are compared. With --out it is written as JSON, from which
coarlib.ablation.ComponentSet.from_json restores it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from coarlib.ablation import ComponentSet
from coarlib.ablation.selection import coverage
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.components_of import component_task
from coarlib.commands.leaving import after_rows, keep_arguments, next_step
from coarlib.errors import ArgumentError, StoreError
from coarlib.files import for_file, whole_file
from coarlib.store import Store
from coarlib.store.components import first_difference, read_components

COMMAND = Command(
    "components",
    __doc__,
    {
        "store": common.store("a store, whose own table is printed", required=False),
        "task": common.task("components.task", required=False),
        "set": common.settings("components.task_args"),
        "index": Param(
            Whole(0),
            "say what this one component is, instead of printing the table",
            also=("components.index",),
        ),
        "out": common.out("write the component set to this JSON file", "components.out"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or one component."""
    args = COMMAND.parse(argv)
    components, lines = _components(args)
    if args.out is not None:
        with whole_file(for_file(args.out), "w") as file:
            json.dump(components.to_json(), file, indent=1)
        keep_arguments(args, args.out)
        print(f"wrote {args.out} ({len(components)} components)")
    if args.index is not None:
        group, _ = components.locate(args.index)
        print(f"{args.index}: {components.name(args.index)} ({group.kind}, axis {group.axis})")
    elif args.out is None:
        print("\n".join([components.table(), *lines]))
    print(_next(args), file=sys.stderr if args.out is None else sys.stdout)


def _next(args: Arguments) -> str:
    if args.store is not None:
        return after_rows(Store.open(args.store), args.task, args.set)
    return next_step(
        "initialize_store", "STORE", task=args.task, set=args.set, rows=1000, keep=0.95
    )


def _components(args: Arguments) -> tuple[ComponentSet, list[str]]:
    """Take the components of a store, of a task, or of both, which must agree.

    The lines say, of a task's model, in how many of its layers there are some.
    """
    kept = None if args.store is None else read_components(Store.open(args.store).path)
    if args.task is not None:
        task = component_task(args)
        model = task.plain_model()
        components = task.components(model)
        plain = json.loads(json.dumps(components.to_json()))
        if kept is not None and (found := first_difference(kept, plain)):
            raise StoreError(
                f"the rows of {args.store} ablate other components than {args.task}: {found}"
            )
        return components, coverage(model, components)
    if kept is not None:
        return ComponentSet.from_json(kept), []
    if args.store is not None:
        raise StoreError(
            f"{args.store} holds no component table (no component task has filled it); give --task"
        )
    raise ArgumentError("give a store, or a task (--task)")


if __name__ == "__main__":
    run(main)

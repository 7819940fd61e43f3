"""Change a model by ablating the components that attributions name (COAR-Edit).

    coar edit OUT --task digits --target label:8 --lower        forget a class
    coar edit OUT --task digits --target 17 --allowed_loss 0.01
                       mend an error, at the cost of 1% of the others at most

Examples are given as indices, ranges (450-855), label:CLASS, wrong or right, comma-separated. Half
of each group chooses which and how many components go; the numbers printed are those of the other
half. Writes edit.json and the edited weights, model.pt; the model the task reads is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentTask
from coarlib.baselines.evaluation import measure
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.commands.components_of import component_task, output_of
from coarlib.devices import resolve_device
from coarlib.editing import STATISTICS, Edit, Groups, Plan, plan_edit
from coarlib.errors import ArgumentError
from coarlib.files import whole_file
from coarlib.regression.attributions import Attributions

COMMAND = Command(
    "edit",
    __doc__,
    {
        "attributions": common.store("result directory of run_regression", "edit.attributions"),
        "task": common.task("edit.task"),
        "set": common.settings("edit.task_args"),
        "target": Param(
            str, "examples whose outputs are to change", required=True, also=("edit.target",)
        ),
        "out": common.out(
            "where edit.json and model.pt go; default: beside the attributions", "edit.out_dir"
        ),
        "reference": Param(
            str, "examples to leave alone; default: all others", also=("edit.reference",)
        ),
        "lower": common.flag("lower the targets' outputs instead of raising", "edit.lower"),
        "allowed_loss": Param(
            float,
            "what other examples may lose in accuracy",
            default=0.02,
            also=("edit.allowed_loss",),
        ),
        "largest": Param(
            Whole(1), "components to ablate at most", default=20, also=("edit.largest",)
        ),
        "statistic": Param(
            Choice(STATISTICS),
            "one of " + ", ".join(STATISTICS),
            default="t_like",
            also=("edit.statistic",),
        ),
        "seed": common.seed("of the split in halves", "edit.seed"),
        "output": common.output("edit.output"),
        "device": common.device("edit.device"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Plan an edit, say what it does, and save the edited model."""
    args = COMMAND.parse(argv)
    task = component_task(args)
    attributions = Attributions.load(args.attributions)
    task.prepare(resolve_device(args.device))
    key = output_of(task, args.output)
    shape = (len(task.component_set), task.num_examples)
    if attributions.weight.shape != shape:
        raise ArgumentError(
            f"{args.attributions} holds attributions of {list(attributions.weight.shape)}, but "
            f"{args.task} has {shape[0]} components and {shape[1]} examples"
        )
    groups = _groups(task, key, args.target, args.reference)
    validation, test = _halves(groups, args.seed)
    plan = plan_edit(
        attributions.weight,
        lambda masks: measure(task, masks, key, "edits"),
        validation,
        test,
        raise_target=not args.lower,
        allowed_loss=args.allowed_loss,
        largest=min(args.largest, shape[0]),
        statistic=args.statistic,
        value=lambda margins: margins > 0,
    )
    out = Path(args.out or common.beside(args.attributions, "edit"))
    args.out = str(out)
    out.mkdir(parents=True, exist_ok=True)
    _save(out, task, plan)
    args.save(out / "arguments.yaml", "edit")
    print(_words(plan, task, groups, test))
    print(f"edited weights and what was tried: {out}")


def examples_of(
    text: str, labels: NDArray[np.int64], right: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which examples a text such as ``"3,10-19,label:8,wrong"`` names, bool [T].

    Raises
    ------
    ArgumentError
        If a word is none of these, or names no example.
    """
    found = np.zeros(len(right), dtype=np.bool_)
    for word in text.split(","):
        first, dash, last = word.partition("-")
        label = word.removeprefix("label:")
        if word in ("right", "wrong"):
            these = right if word == "right" else ~right
        elif label != word and label.isdigit() and labels.shape == right.shape:
            these = labels == int(label)
        elif first.isdigit() and (last.isdigit() if dash else True):
            places = np.arange(len(right))
            these = (places >= int(first)) & (places <= int(last if dash else first))
        else:
            raise ArgumentError(
                f"{word!r} names no examples: give indices, ranges such as 3-9, label:CLASS (where "
                "every example has one), wrong or right, comma-separated"
            )
        if not these.any():
            raise ArgumentError(f"{word} names none of the {len(right)} examples")
        found |= these
    return found


def _groups(task: ComponentTask, key: str, target: str, reference: str | None) -> Groups:
    intact = measure(task, np.ones((1, len(task.component_set)), np.bool_), key, "intact model")[0]
    labels = torch.cat([batch.targets for _, batch in task.batches()]).cpu().numpy()
    chosen = examples_of(target, labels, intact > 0)
    kept = ~chosen if reference is None else examples_of(reference, labels, intact > 0) & ~chosen
    if not kept.any():
        raise ArgumentError("no example is left as a reference")
    rest = ~chosen & ~kept
    return chosen, kept, rest if rest.any() else kept


def _halves(groups: Groups, seed: int) -> tuple[Groups, Groups]:
    """Split every group at random; one that holds a single example is in both halves."""
    generator = np.random.Generator(np.random.Philox(seed))
    first = np.zeros(len(groups[0]), dtype=np.bool_)
    for group in groups[:2]:
        places = generator.permutation(np.flatnonzero(group))
        first[places[::2]] = True
    rest = generator.random(len(first)) < 0.5
    first |= rest & ~groups[0] & ~groups[1]

    def half(group: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return group & chosen if (group & chosen).any() else group

    validation, test = (tuple(half(g, side) for g in groups) for side in (first, ~first))
    return validation, test  # type: ignore[return-value]


def _save(out: Path, task: ComponentTask, plan: Plan) -> None:
    names = [task.component_set.name(index) for index in plan.ablated.tolist()]
    content = {"ablated": plan.ablated.tolist(), "components": names}
    content |= {"validation": [asdict(effect) for effect in plan.validation]}
    content |= {"test": {"before": asdict(plan.before), "after": asdict(plan.after)}}
    with whole_file(out / "edit.json") as file:
        file.write(json.dumps(content, indent=1).encode())
    model = task.model()
    with Edit(model, task.component_set, plan.ablated), whole_file(out / "model.pt") as file:
        torch.save(model.state_dict(), file)


def _words(plan: Plan, task: ComponentTask, groups: Groups, test: Groups) -> str:
    lines = [f"{len(plan.ablated)} of {len(task.component_set)} components ablated"]
    lines += [f"  {task.component_set.name(index)}" for index in plan.ablated.tolist()]
    names = ["target", "reference", "rest"]
    for at, name in enumerate(names[: 2 if groups[2] is groups[1] else 3]):
        before, after = getattr(plan.before, name), getattr(plan.after, name)
        count = int(test[at].sum())
        lines.append(f"{name:<10} {before:6.1%} right -> {after:6.1%}  ({count} test examples)")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)

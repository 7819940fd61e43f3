"""Change a model by ablating the components that attributions name (COAR-Edit).

    coar edit OUT --task digits --target label:8 --lower        forget a class
    coar edit OUT --task digits --target 17 --allowed_loss 0.01
                       mend an error, at the cost of 1% of the others at most

Examples are given as indices, ranges (450-855), label:CLASS, wrong or right, separated by commas.
Half of each group chooses which components go; the numbers printed are those of the other half,
except for a group of one example, which chooses and is printed: "in sample". Writes edit.json (with
what the targets gain against what the others lose, step by step) and model.pt, the edited weights,
whose outputs are checked against those measured; the model the task reads is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation import ComponentTask
from coarlib.baselines.evaluation import measure
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.commands.components_of import (
    allow_other_task,
    check_made_for,
    component_task,
    output_of,
)
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.editing import STATISTICS, Edit, EditPlan, Groups, plan_edit
from coarlib.errors import ArgumentError
from coarlib.files import whole_file
from coarlib.outputs import margin
from coarlib.regression.attributions import Attributions

ACCURACY_LOSS = 0.02
# How far the saved model may be from the measured one, in what is printed: half precision and
# folded batch norms round differently.
SAVED_TOLERANCE = 0.02
GROUPS = ("target", "reference", "rest")
# Ways of ablating that leave weights to save, and what they multiply them with.
FACTORS: Mapping[str, Callable[[ComponentTask], float]] = {
    "zero_weights": lambda task: 0.0,
    "scale_weights": lambda task: task.scale,
}

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
            f"what other examples may lose: accuracy, {ACCURACY_LOSS} by default, or where outputs "
            "are no margins their mean, without default",
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
        "allow_other_task": allow_other_task(),
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
    check_made_for(attributions, task, args)
    if task.ablate not in FACTORS:
        raise ArgumentError(
            f"{args.task} ablates by {task.ablate}, which changes activations: no edited weights "
            f"could be saved that do the same; use ablate={' or '.join(FACTORS)}"
        )
    margins = task.outputs[key] is margin
    loss = ACCURACY_LOSS if margins and args.allowed_loss is None else args.allowed_loss
    if loss is None:
        raise ArgumentError(
            f"{key} of {args.task} are no margins, so there is no accuracy to lose: say with "
            "--allowed_loss by how much their mean may fall"
        )
    groups = _groups(task, key, margins, args.target, args.reference)
    validation, test = _halves(groups, args.seed)
    plan = plan_edit(
        attributions.weight,
        lambda masks: measure(task, masks, key, "edits"),
        validation,
        test,
        raise_target=not args.lower,
        allowed_loss=loss,
        largest=min(args.largest, shape[0]),
        statistic=args.statistic,
        value=(lambda outputs: outputs > 0) if margins else (lambda outputs: outputs),
    )
    out = Path(args.out or common.beside(args.attributions, "edit"))
    args.out = str(out)
    _save(out, task, plan, key, test)
    keep_arguments(args, out)
    print(_words(plan, task, groups, test, margins))
    print(f"edited weights and what was tried: {out}")
    print(next_step("report", args.attributions, task=args.task, set=args.set))


def examples_of(
    text: str, labels: NDArray[np.int64], right: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Return which examples a text such as ``"3,10-19,label:8,wrong"`` names, bool [T].

    ``right`` is None where outputs are no margins, so that no answer is right or wrong.

    Raises
    ------
    ArgumentError
        If a word is none of these, or names no example.
    """
    found = np.zeros(len(labels), dtype=np.bool_)
    for word in text.split(","):
        first, dash, last = word.partition("-")
        label = word.removeprefix("label:")
        if word in ("right", "wrong"):
            if right is None:
                raise ArgumentError(
                    f"{word}: the outputs are no margins, so none is right or wrong"
                )
            these = right if word == "right" else ~right
        elif label != word and label.isdigit() and labels.ndim == 1:
            these = labels == int(label)
        elif first.isdigit() and (last.isdigit() if dash else True):
            places = np.arange(len(labels))
            these = (places >= int(first)) & (places <= int(last if dash else first))
        else:
            raise ArgumentError(
                f"{word!r} names no examples: give indices, ranges such as 3-9, label:CLASS (where "
                "every example has one), wrong or right, comma-separated"
            )
        if not these.any():
            raise ArgumentError(f"{word} names none of the {len(labels)} examples")
        found |= these
    return found


def _groups(
    task: ComponentTask, key: str, margins: bool, target: str, reference: str | None
) -> Groups:
    intact = measure(task, np.ones((1, len(task.component_set)), np.bool_), key, "intact model")[0]
    labels = torch.cat([batch.targets for _, batch in task.batches()]).cpu().numpy()
    right = intact > 0 if margins else None
    chosen = examples_of(target, labels, right)
    kept = ~chosen if reference is None else examples_of(reference, labels, right) & ~chosen
    if not kept.any():
        raise ArgumentError("no example is left as a reference")
    rest = ~chosen & ~kept
    return chosen, kept, rest if rest.any() else kept


def _halves(groups: Groups, seed: int) -> tuple[Groups, Groups]:
    """Split every group at random; one that holds a single example is in both halves."""
    generator = np.random.Generator(np.random.Philox(seed))
    first = np.zeros(len(groups[0]), dtype=np.bool_)
    for group in groups[: 2 if groups[2] is groups[1] else 3]:
        places = generator.permutation(np.flatnonzero(group))
        first[places[::2]] = True

    def half(group: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return group & chosen if (group & chosen).any() else group

    validation, test = (tuple(half(g, side) for g in groups) for side in (first, ~first))
    return validation, test  # type: ignore[return-value]


def _save(out: Path, task: ComponentTask, plan: EditPlan, key: str, test: Groups) -> None:
    """Write edit.json and model.pt; ArgumentError if the saved weights do something else."""
    margins = task.outputs[key] is margin
    names = [task.component_set.name(index) for index in plan.ablated.tolist()]
    factor = FACTORS[task.ablate](task)
    model = task.model().eval()
    content: dict[str, Any] = {"ablated": plan.ablated.tolist(), "components": names}
    content |= {"ablate": task.ablate, "value": "accuracy" if margins else f"mean {key}"}
    content |= {"validation": [asdict(effect) for effect in plan.validation]}
    content |= {"test": {"before": asdict(plan.before), "after": asdict(plan.after)}}
    content |= {"in_sample": _in_sample(test), "rows_measured": plan.measured}
    with Edit(model, task.component_set, plan.ablated, factor):
        outputs = _outputs(task, model, key)
        values = outputs > 0 if margins else outputs
        unit = 1.0 if margins else float(outputs.std()) or 1.0
        for name, group in zip(GROUPS, test, strict=True):
            saved, measured = float(values[group].mean()), getattr(plan.after, name)
            if not abs(saved - measured) <= SAVED_TOLERANCE * unit:
                raise ArgumentError(
                    f"the edited weights do not do what was measured ({name} {saved:.4g} instead "
                    f"of {measured:.4g}), so nothing was saved: model() of the task is not the "
                    "model that its rows evaluate"
                )
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out / "model.pt") as file:
            torch.save(model.state_dict(), file)
    with whole_file(out / "edit.json") as file:
        file.write(json.dumps(content, indent=1).encode())


def _outputs(task: ComponentTask, model: nn.Module, key: str) -> NDArray[np.float32]:
    """Outputs of a model on the task's examples, float32 [T]."""
    model = model.to(task.device)
    with torch.inference_mode():
        parts = [
            task.outputs[key](task.predict(model, batch.inputs), batch.targets).float().cpu()
            for _, batch in task.batches()
        ]
    return torch.cat(parts).numpy()


def _in_sample(test: Groups) -> list[str]:
    """Groups whose only example also chose the edit."""
    return [name for name, group in zip(GROUPS, test, strict=True) if group.sum() == 1]


def _words(plan: EditPlan, task: ComponentTask, groups: Groups, test: Groups, margins: bool) -> str:
    lines = [f"{len(plan.ablated)} of {len(task.component_set)} components ablated"]
    lines += [f"  {task.component_set.name(index)}" for index in plan.ablated.tolist()]
    for at, name in enumerate(GROUPS[: 2 if groups[2] is groups[1] else 3]):
        before, after = getattr(plan.before, name), getattr(plan.after, name)
        numbers = (
            f"{before:6.1%} right -> {after:6.1%}" if margins else f"{before:.4g} -> {after:.4g}"
        )
        count = int(test[at].sum())
        judged = "in sample: it also chose the edit" if count == 1 else f"{count} test examples"
        lines.append(f"{name:<10} {numbers}  ({judged})")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)

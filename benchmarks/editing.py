"""COAR-Edit on real data: a forgotten class, mended errors, a backdoor cut out.

    python benchmarks/editing.py [--rows 1200] [--resnet out/resnet20] [--errors 10]

Digits: the residual CNN of the digits set-up, attributions from --rows ablations of 10% of its 240
filters; half of the held-out digits choose the edit, the other half judges it. ResNet-20: the
first --errors wrong ones of 200 CIFAR-10 test images, with ridge attributions from the rows that
resnet20_rows.py makes; left out where its model and images are not here, or with --errors 0.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import reporting
import resnet20_rows
import torch

from coarlib.editing import plan_edit
from coarlib.regression.fit import fit
from coarlib.regression.moments import Moments
from coarlib.regression.rows import ArrayRows, open_rows
from estimate.cifar_resnet.task import CifarTask
from estimate.digits.model import digits
from estimate.digits.task import DigitsTask
from estimate.digits_backdoor.task import DigitsBackdoorTask

KEPT, ALLOWED = 0.9, {"mend": 0.02, "forget": 0.1}
SEED = 0


class Edits:
    """A prepared task, its attributions, and edits of it."""

    def __init__(self, task, weight=None, rows=0):
        task.prepare(torch.device("cpu"))
        self.task, self.weight = task, weight
        if weight is None:
            masks = np.random.default_rng(SEED).random((rows, task.num_features)) < KEPT
            moments = Moments.from_rows(ArrayRows(masks, self.outputs(masks)))
            self.weight = fit(moments, "ridge").weight
        intact = self.outputs(np.ones((1, task.num_features), np.bool_))[0]
        self.wrong = np.flatnonzero(intact <= 0)
        self.half = np.arange(task.num_examples) % 2 == 0

    def outputs(self, masks):
        step = self.task.rows_per_batch
        parts = [masks[at : at + step] for at in range(0, len(masks), step)]
        rows = [self.task.rows(np.arange(len(part)), part)["test_margins"] for part in parts]
        return torch.cat(rows).numpy()

    def plan(self, target, reference, kind):
        halves = []
        for side in (self.half, ~self.half):
            mine = target & side if target.sum() > 1 else target
            halves.append((mine, reference & side, reference & side))
        return plan_edit(
            self.weight,
            self.outputs,
            *halves,
            raise_target=kind == "mend",
            allowed_loss=ALLOWED[kind],
            value=lambda margins: margins > 0,
        )

    def mend(self, errors):
        """Mend each error by itself; what the unseen others lose."""
        found = []
        for error in errors.tolist():
            target = np.arange(len(self.half)) == error
            plan = self.plan(target, ~target, "mend")
            found.append(
                {
                    "example": error,
                    "components": len(plan.ablated),
                    "mended": bool(plan.after.target),
                    "others_before": plan.before.reference,
                    "others_after": plan.after.reference,
                }
            )
        mended = [one for one in found if one["mended"]]
        print(f"  {len(mended)} of {len(found)} errors mended")
        for one in found:
            print("   ", one)
        return found


def shown(name, plan):
    print(f"  {name}: {len(plan.ablated)} components, {plan.before} -> {plan.after}")
    return {"before": asdict(plan.before), "after": asdict(plan.after)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--resnet", type=Path, default=resnet20_rows.OUT)
    parser.add_argument("--errors", type=int, default=10)
    options = parser.parse_args()
    numbers = {"rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        print("digits")
        edits = Edits(DigitsTask(f"{folder}/model.pt"), rows=options.rows)
        numbers["digits_errors"] = edits.mend(edits.wrong)
        labels = digits(True)[1].numpy()
        numbers["digits_forget"] = {
            str(label): shown(
                f"forget {label}", edits.plan(labels == label, labels != label, "forget")
            )
            for label in range(10)
        }
        backdoor = Edits(DigitsBackdoorTask(f"{folder}/backdoor.pt"), rows=options.rows)
        triggered = np.arange(len(backdoor.half)) >= len(labels)
        plan = backdoor.plan(triggered, ~triggered, "mend")
        numbers["digits_backdoor"] = shown("backdoor", plan)
    if options.errors and (made := resnet20_rows.make(options.resnet.resolve())) is not None:
        print("ResNet-20")
        rows = Moments.from_rows(open_rows(made[0]))
        task = CifarTask(**resnet20_rows.settings())
        edits = Edits(task, weight=fit(rows, "ridge").weight)
        numbers["resnet20"] = {"rows": rows.num_rows, "images": task.num_examples}
        numbers["resnet20_wrong"] = len(edits.wrong)
        numbers["resnet20_errors"] = edits.mend(edits.wrong[: options.errors])
    needed = () if options.errors else ("--errors", "0")
    reporting.save("editing", numbers, "torch", options=needed)


if __name__ == "__main__":
    main()

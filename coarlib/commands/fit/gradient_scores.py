"""Guess attributions from gradients at a few ablated models, for run_regression to improve on.

    coar gradient_scores --task digits --out out/digits/gradients.npz
    coar run_regression STORE --prior_scores out/digits/gradients.npz

Each model costs three forward passes over the examples. Take the fraction that the store's design
ablates. The file holds scores [components, targets] and the layer of each component.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.baselines.gradients import BACKWARD
from coarlib.baselines.mean_gradients import ablated_masks, group_index, mean_gradients
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.components_of import component_task, output_of
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.files import for_file
from coarlib.regression.solvers.prior import save_prior_scores

COMMAND = Command(
    "gradient_scores",
    __doc__,
    {
        "task": common.task("scores.task"),
        "set": common.settings("scores.task_args"),
        "out": common.out("the .npz to write; never overwritten", "scores.out", required=True),
        "fraction": Param(
            float,
            "share of components ablated; 0 = the intact model",
            default=0.05,
            also=("scores.fraction",),
        ),
        "models": Param(Whole(1), "ablated models", default=16, also=("scores.models",)),
        "output": common.output("scores.output"),
        "device": common.device("scores.device"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and write the scores."""
    args = COMMAND.parse(argv)
    out = Path(args.out)
    if out.exists():
        raise ArgumentError(f"--out {out} already exists; give another name")
    task = component_task(args)
    task.prepare(resolve_device(args.device))
    key = output_of(task, args.output)
    components = task.component_set
    masks = ablated_masks(len(components), args.fraction, 1 if args.fraction == 0 else args.models)
    scores = mean_gradients(task, masks, key)
    passes = (1 + BACKWARD) * len(masks)
    save_prior_scores(for_file(out), scores, group_index(components), passes)
    keep_arguments(args, out)
    print(
        f"wrote {out}: {scores.shape[0]} components × {scores.shape[1]} targets from "
        f"{len(masks)} models ({passes} forward passes)"
    )
    print(next_step("run_regression", "STORE", prior_scores=out))


if __name__ == "__main__":
    run(main)

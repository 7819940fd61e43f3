"""Guess attributions from gradients at a few ablated models, for run_regression to improve on.

    coar gradient_scores --scores.task digits --scores.out out/digits/gradients.npz
    coar run_regression … --cfg.solver auto --cfg.prior_scores out/digits/gradients.npz

Each model costs three forward passes over the examples. Take the fraction that the store's design
ablates. The file holds scores [components, targets] and the layer of each component.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.baselines.mean_gradients import ablated_masks, group_index, mean_gradients
from coarlib.commands.arguments import Param, Whole, parse, run
from coarlib.commands.store.components import component_task
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.regression.solvers.prior import save_scores

SECTIONS = {
    "scores": {
        "task": Param(str, "set-up, module:Class or file.py:Class", required=True),
        "task_args": Param(str, "JSON object with the task's settings", default="{}"),
        "out": Param(str, "the .npz to write; never overwritten", required=True),
        "fraction": Param(float, "share of components ablated; 0 = the intact model", default=0.05),
        "models": Param(Whole(1), "ablated models", default=16),
        "output": Param(str, "array of the store that is fitted; default: the task's only one"),
        "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and write the scores."""
    args = parse(__doc__ or "", SECTIONS, argv).scores
    out = Path(args.out)
    if out.exists():
        raise ArgumentError(f"--scores.out {out} already exists; give another name")
    task = component_task(args.task, args.task_args)
    task.prepare(resolve_device(args.device))
    key = args.output or next(iter(task.outputs))
    if key not in task.outputs or (args.output is None and len(task.outputs) > 1):
        raise ArgumentError(f"--scores.output must be one of {', '.join(task.outputs)}")
    components = task.component_set
    masks = ablated_masks(len(components), args.fraction, 1 if args.fraction == 0 else args.models)
    scores = mean_gradients(task, masks, key)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_scores(out, scores, group_index(components))
    print(
        f"wrote {out}: {scores.shape[0]} components × {scores.shape[1]} targets from "
        f"{len(masks)} models ({3 * len(masks)} forward passes)"
    )


if __name__ == "__main__":
    run(main)

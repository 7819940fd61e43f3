"""Differentiate trained outputs with respect to the weight of every training example.

    coar metagradient out/digits/metagradient --task digits_subsets --set model=cnn --seeds 32
    coar metagradient out/digits_path/metagradient --task digits_path --history out/digits_path/history

Either the task's models are trained with some seeds, each on a part of the data, or a recorded history
is gone through. The store has a row for each seed and test point: a run that stopped goes on, and
processes that are given the same store share out its rows.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.history.histories import build
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.history import open_run
from coarlib.metagradient import Metagradients, metagradients, metagradients_of_seeds
from coarlib.metagradient.derivatives import DEFAULT_MEMORY
from coarlib.retraining import Trainer, run_seed

COMMAND = Command(
    "metagradient",
    __doc__,
    {
        "out": common.store("where the store of results goes", "explain.out"),
        "task": common.task("setup"),
        "set": common.settings(),
        "history": Param(str, "a recorded history of the task, instead of seeds"),
        "seeds": Param(Whole(1), "how many seeds to train with and average over", default=8),
        "kept": Param(float, "share of the examples that each seed trains on", default=0.5),
        "seed": common.seed("the seeds follow from it"),
        "quantity": Param(
            str,
            "log_odds, margin, logit, log_probability or all",
            default="log_odds",
            also=("output",),
        ),
        "num_test": Param(Whole(1), "how many held-out points; default: all"),
        "removals": Param(Whole(0), "small removals that are predicted and done", default=6),
        "memory_mb": Param(
            Whole(1), "memory for derivatives", default=DEFAULT_MEMORY // 2**20
        ),
        "device": common.device(),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Differentiate, and keep the mean over seeds as attributions."""
    args = COMMAND.parse(argv)
    options = {
        "output": args.quantity,
        "removals": args.removals,
        "out": args.out,
        "memory": args.memory_mb * 2**20,
    }
    found = _of_seeds(args, options) if args.history is None else _of_history(args, options)
    if found.smoothness is not None:
        print(f"smoothness: {found.smoothness}")
    attributions = Path(f"{args.out}.attributions")
    if not attributions.exists():  # else an earlier process wrote them, from the same rows
        found.attributions().save(attributions)
    keep_arguments(args, args.out)
    print(f"attributions of training examples are in {attributions}")
    print(next_step("report", attributions))


def _of_history(args: Arguments, options: dict[str, Any]) -> Metagradients:
    if given := {"seeds", "kept", "seed"} & args.given:
        raise ArgumentError(f"--{min(given)} says how to train; --history is of one training run")
    setup = build(args)
    device = resolve_device(args.device)
    model, samples = setup.model().to(device), setup.train_samples()
    chosen = open_run(args.history, model, setup.loss(), samples, replay_tolerance=0.0)
    inputs, targets = (tensor[: args.num_test] for tensor in setup.test_samples())
    return metagradients(chosen, inputs, targets, **options)


def _of_seeds(args: Arguments, options: dict[str, Any]) -> Metagradients:
    task: Any = common.load_task(args)
    trainer, held_out = getattr(task, "trainer", None), getattr(task, "held_out", None)
    if not isinstance(trainer, Trainer) or held_out is None:
        raise ArgumentError(
            f"{args.task} does not say how it is trained (a trainer, and held_out() for the test "
            "points, as digits_subsets has them); give such a task, or --history"
        )
    inputs, targets = (tensor[: args.num_test] for tensor in held_out())
    seeds = [run_seed(args.seed, 0, run) for run in range(args.seeds)]
    device = resolve_device(args.device)
    return metagradients_of_seeds(
        trainer, inputs, targets, seeds, kept=args.kept, device=device, **options
    )


if __name__ == "__main__":
    run(main)

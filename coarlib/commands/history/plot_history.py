"""Draw loss and accuracy along a recorded training run, on training and held-out samples.

coar plot_history out/digits_path/history --task digits --out out/digits_path/plots
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.history.histories import HISTORY, build, explain_next
from coarlib.commands.leaving import keep_arguments
from coarlib.devices import resolve_device
from coarlib.history import open_run
from coarlib.path_kernel.studies import training_curve
from coarlib.plots import training_curves
from coarlib.plots.style import save_png

COMMAND = Command(
    "plot_history",
    __doc__,
    {
        **HISTORY,
        "out": common.out("directory of the picture; default: beside the history", "plot.to"),
        "points": Param(
            Whole(2), "at most so many states are evaluated", default=100, also=("plot.points",)
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate kept states and draw."""
    args = COMMAND.parse(argv)
    setup, device = build(args), resolve_device(args.device)
    train = setup.train_samples()
    recorded = open_run(args.history, setup.model().to(device), setup.loss(), train)
    curves = {}
    for name, samples in (("training", train), ("held-out", setup.test_samples())):
        curve = training_curve(recorded, *samples, points=args.points)
        curves[name] = (curve.steps, curve.accuracy, curve.loss)
    folder = Path(args.out or common.beside(args.history, "plots"))
    folder.mkdir(parents=True, exist_ok=True)
    save_png(training_curves(curves), folder / "training.png")
    print(f"drew training.png in {folder}")
    keep_arguments(args, folder / "training.png")
    print(explain_next(args))


if __name__ == "__main__":
    run(main)

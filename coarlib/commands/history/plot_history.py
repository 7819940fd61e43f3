"""Draw loss and accuracy along a recorded training run, on training and held-out samples.

python -m estimate.plot_history --setup.name digits --history.path out/digits_path/history \\
    --plot.to out/digits_path/plots
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.commands.arguments import Param, Whole, parse, run
from coarlib.commands.history.histories import SECTION, build
from coarlib.devices import resolve_device
from coarlib.history import open_run
from coarlib.path_kernel.studies import training_curve

SECTIONS = {
    "setup": SECTION,
    "history": {"path": Param(str, "directory of the history", required=True)},
    "plot": {
        "to": Param(str, "directory of the picture", required=True),
        "points": Param(Whole(2), "at most so many states are evaluated", default=100),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate kept states and draw."""
    from matplotlib.figure import Figure

    args = parse(__doc__ or "", SECTIONS, argv)
    setup, device = build(args.setup), resolve_device(args.setup.device)
    train = setup.train_samples()
    recorded = open_run(args.history.path, setup.model().to(device), setup.loss(), train)
    figure = Figure(figsize=(10, 3.2))
    left, right = figure.subplots(1, 2)
    for name, samples in (("training", train), ("held-out", setup.test_samples())):
        curve = training_curve(recorded, *samples, points=args.plot.points)
        left.plot(curve.steps, curve.accuracy, label=name)
        right.plot(curve.steps, curve.loss, label=name)
    left.set_ylabel("accuracy")
    right.set_ylabel("loss")
    for axis in (left, right):
        axis.set_xlabel("update")
        axis.legend()
    folder = Path(args.plot.to)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "training.png", dpi=120, bbox_inches="tight")
    print(f"drew training.png in {folder}")


if __name__ == "__main__":
    run(main)

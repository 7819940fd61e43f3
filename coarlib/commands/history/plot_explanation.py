"""Draw an explanation: influence of layers over steps, balance of sources, kernels, similarity.

coar plot_explanation out/digits_path/explanation --out out/digits_path/plots
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coarlib.commands import common
from coarlib.commands.arguments import Command, run
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.errors import HistoryError
from coarlib.path_kernel import Decomposition
from coarlib.path_kernel.studies import balance, influence_over_steps, layer_kernels, similarity

COMMAND = Command(
    "plot_explanation",
    __doc__,
    {
        "explanation": common.store("store of results that explain wrote", "explain.out"),
        "out": common.out("directory of the pictures; default: beside the explanation", "plot.to"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw every figure that the explanation's axes allow."""
    args = COMMAND.parse(argv)
    found = Decomposition.open(args.explanation)
    folder = Path(args.out or common.beside(args.explanation, "plots"))
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Decomposition], Any]] = {
        "influence_over_steps": _influence,
        "balance": _balance,
        "layer_kernels": _kernels,
        "similarity": _similarity,
    }
    drawn = []
    for name, draw in figures.items():
        try:
            figure = draw(found)
        except HistoryError:  # an axis that was not asked for
            continue
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        drawn.append(f"{name}.png")
    if not drawn:
        raise HistoryError(
            f"{args.explanation} was accumulated by no axis that can be drawn; explain with "
            "--by sample,tensor+step,sample+tensor"
        )
    print(f"drew {', '.join(drawn)} in {folder}")
    keep_arguments(args, folder)
    print(next_step("report", args.explanation))


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _influence(found: Decomposition) -> Any:
    values = influence_over_steps(found)
    names = found.about["tensors"]
    figure, (axis,) = _figure(8, 1 + 0.3 * len(names))
    first, last = found.about["first"], found.about["last"]
    image = axis.imshow(
        np.log10(values + 1e-12 * values.max()),
        aspect="auto",
        extent=(first, last, len(names) - 0.5, -0.5),
        interpolation="nearest",
    )
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("update at which the gradient was taken")
    figure.colorbar(image, label="log10 mean |contribution|")
    return figure


def _balance(found: Decomposition) -> Any:
    weighed = balance(found)
    first, last = found.about["first"], found.about["last"]
    figure, axes = _figure(10, 3.5, 2)
    for axis, curves, title in zip(
        axes, (weighed.signed, weighed.absolute), ("signed", "absolute"), strict=True
    ):
        for source, curve in curves.items():
            if curve.any():
                steps = np.linspace(first, last, len(curve) + 1)[1:]
                axis.plot(steps, curve, label=source.replace("_", " "))
        axis.set_title(f"cumulative contributions, {title}")
        axis.set_xlabel("update")
        axis.legend()
    return figure


def _kernels(found: Decomposition) -> Any:
    kernels = layer_kernels(found)
    figure, axes = _figure(3.2 * len(kernels), 3, len(kernels))
    for axis, (name, values) in zip(axes, kernels.items(), strict=True):
        limit = np.abs(values).max() or 1.0
        axis.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("training sample")
    axes[0].set_ylabel("test point")
    return figure


def _similarity(found: Decomposition) -> Any:
    vectors = np.asarray(found.by("sample"))
    figure, (axis,) = _figure(4.5, 4)
    cosines = similarity(vectors.reshape(len(vectors), -1))
    image = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xlabel("test point")
    axis.set_ylabel("test point")
    figure.colorbar(image, label="cosine of attribution vectors")
    return figure


if __name__ == "__main__":
    run(main)

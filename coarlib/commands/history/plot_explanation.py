"""Draw an explanation: influence of layers over steps, balance of sources, kernels, similarity.

coar plot_explanation out/digits_path/explanation --out out/digits_path/plots
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coarlib import plots
from coarlib.commands import common
from coarlib.commands.arguments import Command, run
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.errors import HistoryError
from coarlib.path_kernel import Decomposition
from coarlib.plots.style import save_png

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
        "influence_over_steps": plots.influence_over_steps,
        "balance": plots.source_balance,
        "layer_kernels": plots.layer_kernels,
        "similarity": plots.kernel_similarity,
    }
    drawn = []
    for name, draw in figures.items():
        try:
            figure = draw(found)
        except HistoryError:  # an axis that was not asked for
            continue
        save_png(figure, folder / f"{name}.png")
        drawn.append(f"{name}.png")
    if not drawn:
        raise HistoryError(
            f"{args.explanation} was accumulated by no axis that can be drawn; explain with "
            "--by sample,tensor+step,sample+tensor"
        )
    print(f"drew {', '.join(drawn)} in {folder}")
    keep_arguments(args, folder)
    print(next_step("report", args.explanation))


if __name__ == "__main__":
    run(main)

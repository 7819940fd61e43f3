"""Draw what the regression benchmarks measured: cost against size, objective against time.

    python benchmarks/regression_plots.py

Reads benchmarks/results/, writes docs/pictures/regression_scaling.png and
docs/pictures/regression_objective.png.
"""

import json
from pathlib import Path

import reporting

from coarlib.plots.style import COLOURS, INK, line_style, save_png, styled

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZES = {"N": "rows N", "M": "components M", "T": "targets T"}
SMALLEST = 1e-12  # where an exact solution is drawn


def results(name):
    """Return the results of a benchmark, None where it has not been run."""
    path = reporting.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else None


def scaling(plt, found):
    """Log-log cost against each size, the fitted exponents in the legend."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True)
    for axis, (name, title) in zip(axes, SIZES.items(), strict=True):
        table, slopes = found[f"against {name}"], found[f"exponents in {name}"]
        sizes = [line[name] for line in table]
        for at, (key, slope) in enumerate(slopes.items()):
            label = f"{key.replace('_', ' ')}: {name}$^{{{slope:.2f}}}$"
            values = [line[key] for line in table]
            axis.loglog(sizes, values, marker="o", ms=4, label=label, **line_style(at))
        others = ", ".join(f"{k} = {table[0][k]:,}" for k in SIZES if k != name)
        axis.set(xlabel=title, title=others)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        axis.minorticks_off()
        axis.legend(fontsize=8)
    axes[0].set_ylabel("CPU seconds")
    save_png(figure, PICTURES / "regression_scaling.png")


def objective(plt, found):
    """Excess of fast_l1's algorithm against CPU seconds, and where coarlib ends."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for at, (rate, curve) in enumerate(found["curves"].items(), 1):
        label = f"fast_l1's SAGA, learning rate {rate}"
        axis.loglog(curve["CPU seconds"], curve["excess"], label=label, **line_style(at))
    ours = found["runs"][-1]
    gap = max(ours["excess reached"], SMALLEST)
    axis.loglog([ours["CPU seconds"]], [gap], "*", color=COLOURS[0], ms=14,
                label="coarlib, disk to exact weights")  # fmt: skip
    axis.axhline(1e-6, color=INK, lw=0.5, ls=":")
    axis.set(xlabel="CPU seconds", ylabel="(objective - optimum) / ½ variance, worst target",
             ylim=(SMALLEST / 3, 3))  # fmt: skip
    axis.set_title(found["problem"], fontsize=9)
    axis.legend(fontsize=8)
    save_png(figure, PICTURES / "regression_objective.png")


def main():
    for name, draw in (("regression_scaling", scaling), ("regression_fast_l1", objective)):
        found = results(name)
        if found is None:
            print(f"{name}.json is not there: run benchmarks/{name}.py first")
        else:
            with styled() as plt:
                draw(plt, found)
            print(f"drew {name}.json")


if __name__ == "__main__":
    main()

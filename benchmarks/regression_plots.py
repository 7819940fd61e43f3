"""Draw what the regression benchmarks measured: cost against size, objective against time.

    python benchmarks/regression_plots.py

Reads benchmarks/results/, writes docs/pictures/regression_scaling.png and
docs/pictures/regression_objective.png.
"""

import json
from pathlib import Path

import matplotlib as mpl
import reporting

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZES = {"N": "rows N", "M": "components M", "T": "targets T"}
SMALLEST = 1e-12  # where an exact solution is drawn


def results(name):
    """Return the results of a benchmark, None where it has not been run."""
    path = reporting.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else None


def save(figure, name):
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / name, dpi=110, bbox_inches="tight")
    print(f"wrote docs/pictures/{name}")


def scaling(found):
    """Log-log cost against each size, the fitted exponents in the legend."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for axis, (name, title) in zip(axes, SIZES.items(), strict=True):
        table, slopes = found[f"against {name}"], found[f"exponents in {name}"]
        sizes = [line[name] for line in table]
        for key, slope in slopes.items():
            label = f"{key.replace('_', ' ')}: {name}$^{{{slope:.2f}}}$"
            axis.loglog(sizes, [line[key] for line in table], "o-", ms=4, label=label)
        others = ", ".join(f"{k} = {table[0][k]:,}" for k in SIZES if k != name)
        axis.set(xlabel=title, title=others)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("CPU seconds")
    save(figure, "regression_scaling.png")


def objective(found):
    """Excess of fast_l1's algorithm against CPU seconds, and where coarlib ends."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for rate, curve in found["curves"].items():
        label = f"fast_l1's SAGA, learning rate {rate}"
        axis.loglog(curve["CPU seconds"], curve["excess"], label=label)
    ours = found["runs"][-1]
    gap = max(ours["excess reached"], SMALLEST)
    axis.loglog([ours["CPU seconds"]], [gap], "k*", ms=14, label="coarlib, disk to exact weights")
    axis.axhline(1e-6, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="CPU seconds", ylabel="(objective - optimum) / ½ variance, worst target",
             ylim=(SMALLEST / 3, 3))  # fmt: skip
    axis.set_title(found["problem"], fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, "regression_objective.png")


def main():
    for name, draw in (("regression_scaling", scaling), ("regression_fast_l1", objective)):
        found = results(name)
        if found is None:
            print(f"{name}.json is not there: run benchmarks/{name}.py first")
        else:
            draw(found)


if __name__ == "__main__":
    main()

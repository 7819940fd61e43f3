"""The whole pipeline on real digits in a few minutes: ablate, store, fit, score, draw.

    coar demo
    coar demo --size test --out out/quick

Trains a small residual CNN on scikit-learn's handwritten digits, ablates random tenths of its 240
conv filters, fits what each filter does to each of 450 held-out digits, and checks the predictions
on ablations that the fit has not seen. Every stage calls the command of the same name; a stage
that is done already is skipped, so the demo resumes where it was stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.ablation import find_components
from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.checkers import Choice
from coarlib.commands.fit import run_regression
from coarlib.commands.leaving import next_step
from coarlib.commands.store import initialize_store, write_dataset
from coarlib.errors import SetupError
from coarlib.plots import Explained, plot_attributions
from coarlib.regression.attributions import Attributions
from coarlib.scoring import correlate, correlation_interval
from coarlib.setups import load, names, shipped_file
from coarlib.store import Store

SETUP, ALONE = "digits", "digits_leave_one_out"
SUFFIXES = {"full": "", "test": "_test"}
COMMAND = Command(
    "demo",
    __doc__,
    {
        "out": common.out("where everything goes", "demo.out_dir", default="out/demo"),
        "size": Param(
            Choice(tuple(SUFFIXES)),
            "full, or test: a tenth of the rows",
            default="full",
            also=("demo.size",),
        ),
    },
)
BARS = 8
Z_95 = 1.96


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages and print the result."""
    args = COMMAND.parse(argv)
    quiet = ["--quiet"] * args.quiet
    out, suffix = Path(args.out), SUFFIXES[args.size]
    started = time.monotonic()
    rows, singles, beton, fitted, model = (
        out / name for name in ("store", "leave_one_out", "rows.beton", "attributions", "model.pt")
    )
    task: Any = load(SETUP, {"model_path": str(model)})

    def initialise() -> None:
        for store, spec in ((rows, f"{SETUP}{suffix}"), (singles, ALONE)):
            spec_path = str(shipped_file(f"{spec}.json"))
            initialize_store.main([str(store), "--spec", spec_path, *quiet])

    def fill() -> None:
        for store in (rows, singles):
            _fill_with_all_cores(store, model, quiet)

    def fit() -> None:
        config = str(names()[SETUP] / f"regression_config{suffix}.yaml")
        run_regression.main([str(beton), "--config", config, "--out", str(fitted), *quiet])

    _stage("1 initialise the stores", initialise)
    _stage("2 train the model", lambda: print(f"{model}: {_accuracy(task):.1%} of digits right"))
    _stage("3 ablate and fill the stores", fill)
    _stage(
        "4 write the .beton",
        lambda: write_dataset.main([str(rows), "--out", str(beton), *quiet]),
        done=beton,
    )
    _stage("5 fit attributions", fit, done=fitted / "datamodels.pt")
    attributions = Attributions.load(fitted)
    scores: dict[str, NDArray[np.float64]] = {}
    _stage(
        "6 score on unseen ablations", lambda: scores.update(_score(attributions, rows, singles))
    )
    figure = out / "figure.png"
    _stage("7 draw", lambda: _draw(figure, attributions, scores, task))
    print(f"\nfigure: {figure}\nall stages together: {time.monotonic() - started:.0f} s")
    print(next_step("report", out))


def _stage(name: str, work: Callable[[], None], done: Path | None = None) -> None:
    print(f"\n== {name}", flush=True)
    if done is not None and done.exists():
        print(f"{done} is already there")
        return
    started = time.monotonic()
    work()
    print(f"   {time.monotonic() - started:.1f} s", flush=True)


def _fill_with_all_cores(store: Path, model: Path, quiet: Sequence[str]) -> None:
    """Start one single-threaded worker a core; they share the rows out by claims."""
    count = os.cpu_count() or 1
    words = ["make_dataset", str(store), "--task", SETUP, "--set", f"model_path={model}"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "coarlib", *words, "--claim", "--threads", "1", *quiet],
            # One bar is enough; every worker prints its own summary.
            stderr=None if number == 0 else subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SetupError(f"a worker of {store} failed with exit code {max(codes)}")


def _accuracy(task: Any) -> float:
    examples = task.examples()
    predicted = task.model()(*examples.inputs).argmax(1)
    return float((predicted == examples.targets).double().mean())


def _score(attributions: Attributions, rows: Path, singles: Path) -> dict[str, NDArray[np.float64]]:
    """Print each method's mean correlation on rows that no fit has seen; return it a target."""
    store, lone = Store.open(rows), Store.open(singles)
    seen = attributions.summary["num_rows"]
    unseen = store.completed_rows()[seen:]
    masks = store.array("masks")[unseen].astype(np.float64)
    truth = store.array("test_margins")[unseen].astype(np.float64)
    effects = leave_one_out(lone.array("masks"), lone.array("test_margins"))
    methods: dict[str, NDArray[Any]] = {
        f"COAR ({seen} ablations)": attributions.weight,
        f"leave-one-out ({lone.num_models})": effects,
        "random scores": random_scores(*attributions.weight.shape),
    }
    print(
        f"correlation of predicted and true margins on {len(unseen)} unseen ablations of 10% of "
        f"the filters:\nmean over {truth.shape[1]} held-out digits [95% interval]"
    )
    found = {}
    for method, weight in methods.items():
        predicted = masks @ weight
        found[method] = correlate(predicted, truth, "pearson").r
        interval = correlation_interval(predicted, truth, "pearson")
        print(f"   {method:<24} {np.nanmean(found[method]):+.3f} {interval}")
    return found


def _draw(
    path: Path,
    attributions: Attributions,
    correlations: dict[str, NDArray[np.float64]],
    task: Any,
) -> None:
    """Show the filters behind a clear, an ordinary and the hardest digit."""
    network, examples = task.model(), task.examples()
    components = find_components(network)
    images, labels = examples.inputs[0], examples.targets
    logits = network(images).detach()
    right = logits.gather(1, labels[:, None])[:, 0]
    margins = right - logits.scatter(1, labels[:, None], -np.inf).amax(1)
    order = margins.argsort(descending=True).tolist()
    errors = attributions.standard_error
    examples = []
    for at, word in (
        (order[0], "clearest"),
        (order[len(order) // 2], "median"),
        (order[-1], "hardest"),
    ):
        top = attributions.top_features(at, BARS)
        examples.append(
            Explained(
                image=images[at, 0].numpy(),
                title=f"{word}: a {labels[at]}\nread as {logits[at].argmax()} "
                f"(margin {margins[at]:+.1f})",
                names=[components.name(int(index)).replace(".weight", "") for index in top],
                weights=attributions.weight[top, at],
                errors=None if errors is None else Z_95 * errors[top, at],
            )
        )
    plot_attributions(
        path, correlations, examples, "Which of 240 filters decide how a digit is read"
    )


if __name__ == "__main__":
    run(main)

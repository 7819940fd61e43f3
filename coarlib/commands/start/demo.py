"""The whole pipeline on real digits in a few minutes: ablate, store, fit, score, draw.

    python -m estimate.demo

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
from fastargs.validation import OneOf
from numpy.typing import NDArray

from coarlib.ablation import find_components
from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.commands.arguments import Param, parse, run
from coarlib.commands.fit import run_regression
from coarlib.commands.store import initialize_store, write_dataset
from coarlib.errors import SetupError
from coarlib.regression.attributions import Attributions
from coarlib.report.plots import Explained, plot_attributions
from coarlib.scoring import bootstrap_interval, correlate
from coarlib.store import Store
from estimate.digits.model import digits, load_or_train

SECTIONS = {
    "demo": {
        "out_dir": Param(str, "where everything goes", default="out/demo"),
        "size": Param(
            OneOf(["full", "test"]), "full, or test: a tenth of the rows", default="full"
        ),
    }
}
ROOT = Path(__file__).resolve().parents[3]
BARS = 8
Z_95 = 1.96


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages and print the result."""
    args = parse(__doc__ or "", SECTIONS, argv)
    demo, quiet = args.demo, ["--quiet"] * args.quiet
    out = Path(demo.out_dir)
    suffix = {"full": "", "test": "_test"}[demo.size]
    started = time.monotonic()
    rows, singles, beton, fitted, model = (
        out / name for name in ("store", "leave_one_out", "rows.beton", "attributions", "model.pt")
    )

    def initialise() -> None:
        for store, spec in ((rows, f"digits{suffix}"), (singles, "digits_leave_one_out")):
            spec_path = ROOT / "specs" / f"{spec}.json"
            initialize_store.main(_flags("logging", logdir=store, spec=spec_path) + quiet)

    def fill() -> None:
        for store in (rows, singles):
            _fill_with_all_cores(store, model, quiet)

    def write() -> None:
        names = {"x_name": "masks", "y_name": "test_margins"}
        write_dataset.main(_flags("cfg", data_dir=rows, out_path=beton, **names) + quiet)

    def fit() -> None:
        config = ROOT / "estimate" / "digits" / f"regression_config{suffix}.yaml"
        arguments = ["--config", str(config), "--data.data_path", str(beton)]
        run_regression.main([*arguments, "--cfg.out_dir", str(fitted), *quiet])

    _stage("1 initialise the stores", initialise)
    _stage("2 train the model", lambda: print(f"{model}: {_accuracy(model):.1%} of digits right"))
    _stage("3 ablate and fill the stores", fill)
    _stage("4 write the .beton", write, done=beton)
    _stage("5 fit attributions", fit, done=fitted / "datamodels.pt")
    attributions = Attributions.load(fitted)
    scores: dict[str, NDArray[np.float64]] = {}
    _stage(
        "6 score on unseen ablations", lambda: scores.update(_score(attributions, rows, singles))
    )
    figure = out / "figure.png"
    _stage("7 draw", lambda: _draw(figure, attributions, scores, model))
    print(f"\nfigure: {figure}\nall stages together: {time.monotonic() - started:.0f} s")


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
    flags = _flags("expt", base_dir=store, model_path=model, claim=1, threads=1)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "estimate.digits.make_dataset", *flags, *quiet],
            # One bar is enough; every worker prints its own summary.
            stderr=None if number == 0 else subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SetupError(f"a worker of {store} failed with exit code {max(codes)}")


def _flags(section: str, **values: object) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]


def _accuracy(model_path: Path) -> float:
    images, labels = digits(held_out=True)
    predicted = load_or_train(model_path)(images).argmax(1)
    return float((predicted == labels).double().mean())


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
        interval = bootstrap_interval(predicted, truth, "pearson")
        print(f"   {method:<24} {np.nanmean(found[method]):+.3f} {interval}")
    return found


def _draw(
    path: Path,
    attributions: Attributions,
    correlations: dict[str, NDArray[np.float64]],
    model_path: Path,
) -> None:
    """Show the filters behind a clear, an ordinary and the hardest digit."""
    network = load_or_train(model_path)
    components = find_components(network)
    images, labels = digits(held_out=True)
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

"""The whole of it on real digits in two minutes: a model, attributions, a comparison, a picture.

    coar demo
    coar demo --size test --out out/quick

Trains a small residual CNN on scikit-learn's handwritten digits and attributes the margins of 450
held-out digits to its 240 conv filters: ``coar attribute digits --until 0.83``. Then every filter
is left out once, as what it has to beat, and both predict ablations that nothing was fitted on. A
stage that is done already is skipped, so the demo resumes where it was stopped.
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
import torch
from numpy.typing import NDArray

from coarlib.ablation import find_components
from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.baselines.evaluation import Scores, compare, fresh_masks, measure, table
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.checkers import Choice
from coarlib.commands.leaving import next_step
from coarlib.commands.start import attribute
from coarlib.commands.store import initialize_store
from coarlib.errors import SetupError
from coarlib.plots import Explained, plot_attributions
from coarlib.regression.attributions import Attributions
from coarlib.scoring import correlate
from coarlib.setups import load, shipped_file
from coarlib.store import Store

SETUP, ALONE, KEY = "digits", "digits_leave_one_out", "test_margins"
FRACTION = 0.1
GOALS = {"full": ("--until", "0.83"), "test": ("--budget", "160")}
UNSEEN = {"full": 400, "test": 100}
COMMAND = Command(
    "demo",
    __doc__,
    {
        "out": common.out("where everything goes", "demo.out_dir", default="out/demo"),
        "size": Param(
            Choice(tuple(GOALS)),
            "full, or test: no more than 160 forward passes",
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
    out, started = Path(args.out), time.monotonic()
    singles, fitted, model = (out / x for x in ("leave_one_out", "attributions", "model.pt"))
    task: Any = load(SETUP, {"model_path": str(model)})
    words = [SETUP, "--out", str(out), *GOALS[args.size], "--set", f"model_path={model}", *quiet]

    def leave_out() -> None:
        spec = str(shipped_file(f"{ALONE}.json"))
        initialize_store.main([str(singles), "--spec", spec, *quiet])
        _fill_with_all_cores(singles, model, quiet)

    _stage("1 train the model", lambda: print(f"{model}: {_accuracy(task):.1%} of digits right"))
    _stage(
        "2 attribute: coar attribute " + " ".join(words[:5]),
        lambda: attribute.main(words),
        done=fitted / "datamodels.pt",
    )
    _stage("3 leave every filter out, to compare", leave_out)
    found = Attributions.load(fitted)
    scores: dict[str, NDArray[np.float64]] = {}
    _stage(
        "4 predict unseen ablations",
        lambda: scores.update(_score(found, Store.open(singles), task, UNSEEN[args.size])),
    )
    figure = out / "figure.png"
    _stage("5 draw", lambda: _draw(figure, found, scores, task))
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


def _score(
    found: Attributions, lone: Store, task: Any, count: int
) -> dict[str, NDArray[np.float64]]:
    """Print how each method predicts ablations that nothing saw; its correlation a target."""
    task.prepare(torch.device("cpu"))
    masks = fresh_masks(found.num_features, FRACTION, count)
    truth = measure(task, masks, KEY, "fresh ablations")
    effects = leave_one_out(lone.array("masks"), lone.array(KEY))
    methods = {
        "COAR": Scores(found.weight, found.cost.passes),
        "leave-one-out": Scores(effects, lone.num_models),
        "random": Scores(random_scores(*found.weight.shape), 0),
    }
    lines = compare(methods, [FRACTION], count, lambda _: truth, found.num_features)
    print(
        f"correlation of predicted and true margins on {count} unseen ablations of {FRACTION:.0%} "
        f"of the filters:\nmean over {truth.shape[1]} held-out digits [95% interval]; cost in "
        f"forward passes over the digits\n{table(lines)}"
    )
    alone = lines[1]
    print(
        f"leave-one-out less COAR: {alone.difference:+.3f} [{alone.difference_low:+.3f}, "
        f"{alone.difference_high:+.3f}]"
    )
    kept = masks.astype(np.float64)
    return {
        name: correlate(kept @ method.scores, truth.astype(np.float64), "pearson").r
        for name, method in methods.items()
    }


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

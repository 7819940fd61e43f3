"""The path kernel of ExPLAIND's modular addition: when it generalises, and what the parts miss.

    python benchmarks/modular_addition.py [--out out/modular]

The commands of docs/path_kernel.md: (a + b) mod 113 trained for 1,500 updates with its history, and
the log-probabilities of held-out pairs explained. What is in --out already is not done again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import reporting
import torch

from coarlib.history import open_run
from coarlib.path_kernel import explain
from coarlib.path_kernel.studies import training_curve
from estimate.modular_addition.setup import ModularAddition

STEPS, EVERY, WINDOW, TOLERANCE, POINTS = 1500, 10, 10, 1e-3, 8
SHOWN = (600, 700, 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=reporting.ROOT / "out" / "modular")
    parser.add_argument("--points", type=int, default=POINTS, help="held-out pairs to explain")
    args = parser.parse_args()
    words = ["--setup", "modular_addition", "--set", f"num_steps={STEPS}", "--every", str(EVERY)]
    command = [sys.executable, "-m", "coarlib", "record_history", args.out / "history", *words]
    subprocess.run(list(map(str, command)), check=True, cwd=reporting.ROOT)
    setup = ModularAddition(num_steps=STEPS)
    train, test = setup.train_samples(), setup.test_samples()
    run = open_run(args.out / "history", setup.model(), setup.loss(), train, replay_tolerance=0.0)
    states, results = STEPS // EVERY, {"updates": {}}
    for name, samples in (("training", train), ("held-out", test)):
        curve = training_curve(run, *samples, points=states)
        right = dict(zip(curve.steps.tolist(), curve.accuracy.tolist(), strict=True))
        results["updates"][name] = {str(step): right[step] for step in SHOWN}
    few = tuple(tensor[: args.points] for tensor in test)
    by = [("step",), ("tensor", "step")]
    found = explain(
        run, *few, output="log_probability", by=by, step_window=WINDOW, tolerance=TOLERANCE,
        out=args.out / "explanation",
    )  # fmt: skip
    results["explained"] = {"pairs": args.points, "checks": found.checks()}
    results["largest change"] = largest_change(run, *few)
    results["history MB"] = run.walk.history.settings.num_bytes() / 1e6
    reporting.save("modular_addition", results, "torch")


@torch.no_grad()
def largest_change(run, inputs, targets):
    """By how much training changes the log-probability of a pair at most."""
    walk = run.walk
    ends = [
        torch.func.functional_call(run.model, walk.theta(step), (inputs,)).log_softmax(-1)
        for step in (walk.history.first, walk.history.last)
    ]
    change = (ends[1] - ends[0])[np.arange(len(targets)), targets]
    return float(change.abs().max())


if __name__ == "__main__":
    main()

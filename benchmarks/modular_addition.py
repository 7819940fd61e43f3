"""When a transformer generalises that adds modulo 113, as ExPLAIND trains it.

    python benchmarks/modular_addition.py [--out out/modular]

The history of docs/path_kernel.md is recorded, four minutes of one core; what is in --out already
is not done again. Then the share of right answers at some updates, and the size of the history.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import reporting
import torch

from coarlib.history import open_run
from estimate.modular_addition.setup import ModularAddition

STEPS, EVERY = 1500, 10
SHOWN = (600, 700, 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=reporting.ROOT / "out" / "modular")
    history = parser.parse_args().out.resolve() / "history"
    words = ["--setup", "modular_addition", "--set", f"num_steps={STEPS}", "--every", str(EVERY)]
    command = [sys.executable, "-m", "coarlib", "record_history", str(history), *words]
    subprocess.run(command, check=True, cwd=reporting.ROOT)
    setup = ModularAddition(num_steps=STEPS)
    samples = {"training": setup.train_samples(), "held-out": setup.test_samples()}
    run = open_run(history, setup.model(), setup.loss(), samples["training"], replay_tolerance=0.0)
    states = {step: run.walk.theta(step) for step in SHOWN}
    right = {
        name: {str(step): share_right(run.model, state, *pairs) for step, state in states.items()}
        for name, pairs in samples.items()
    }
    size = run.walk.history.settings.num_bytes() / 1e6
    reporting.save("modular_addition", {"right after updates": right, "history MB": size}, "torch")


@torch.no_grad()
def share_right(model, state, inputs, targets):
    outputs = torch.func.functional_call(model, state, (inputs,))
    return float((outputs.argmax(-1) == targets).double().mean())


if __name__ == "__main__":
    main()

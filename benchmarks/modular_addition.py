"""When a transformer generalises that adds modulo 113; what explaining its training costs.

    python benchmarks/modular_addition.py [--parts generalises explaining] [--out out/modular]

``generalises``: the history of docs/path_kernel.md is recorded, as ExPLAIND trains; what is
in --out already is not done again. Then the share of right answers at some updates, and the size of
the history. ``explaining``: from states of the same training, a few updates are recorded, and 100
held-out log-probabilities explained by both the path kernel and metagradients, by training pair;
processor seconds an update, on one thread. Both go through all updates alike, so that the whole
training takes so many times as long.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import reporting
import torch

from coarlib.history import open_run, record
from coarlib.metagradient import metagradients
from coarlib.path_kernel import explain
from estimate.modular_addition.setup import ModularAddition

STEPS, EVERY = 1500, 10
SHOWN = (600, 700, 1000)
EXPLAINED_FROM, UPDATES, POINTS = (100, 800, 1300), 3, 100
TOLERANCES = {"default tolerance": None, "tolerance 0.001": 1e-3}
PARTS = ("generalises", "explaining")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=reporting.ROOT / "out" / "modular")
    asked = parser.parse_args()
    file = reporting.RESULTS / "modular_addition.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    if "generalises" in asked.parts:
        results |= generalises(asked.out.resolve() / "history")
    if "explaining" in asked.parts:
        results["explaining"] = explaining()
    reporting.save("modular_addition", results, "torch")


def generalises(history):
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
    return {"right after updates": right, "history MB": size}


def explaining():
    """What an update costs that both explanations go through."""
    reporting.one_thread()
    setup, found = ModularAddition(num_steps=STEPS), {}
    model, loss, (inputs, targets) = setup.model(), setup.loss(), setup.train_samples()
    tests = [part[:POINTS] for part in setup.test_samples()]
    optimizer, everything = setup.optimizer(model), range(len(targets))

    def step(history=None):
        optimizer.zero_grad()
        loss.function(model(inputs), targets).backward()
        if history is not None:
            history.batch(everything)
        optimizer.step()

    options = {"samples": (inputs, targets), "loss": loss, "max_batch": len(targets)}
    options |= {"num_steps": UPDATES, "keep_momentum": True, "quiet": True}
    for number in range(max(EXPLAINED_FROM) + 1):
        if number not in EXPLAINED_FROM:
            step()
            continue
        with tempfile.TemporaryDirectory() as folder:
            with record(model, optimizer, folder, **options) as history:
                for _ in range(UPDATES):
                    step(history)
            run = open_run(folder, model, loss, (inputs, targets))
            found[str(number)] = costs(run, tests)
            print(number, found[str(number)], flush=True)
    return {"points": POINTS, "updates": UPDATES, "from update": found}


def costs(run, tests):
    options = {"output": "log_probability", "quiet": True}
    calls = {
        f"path kernel, {name}": lambda tolerance=tolerance: explain(
            run, *tests, tolerance=tolerance, **options
        )
        for name, tolerance in TOLERANCES.items()
    }
    calls["metagradients"] = lambda: metagradients(run, *tests, removals=0, **options)
    seconds = {}
    for name, call in calls.items():
        began = time.process_time()
        call()
        seconds[name] = (time.process_time() - began) / UPDATES
    both = {
        name: 1 + seconds["metagradients"] / seconds[f"path kernel, {name}"] for name in TOLERANCES
    }
    return {"seconds an update": seconds, "both, as the path kernel alone": both}


@torch.no_grad()
def share_right(model, state, inputs, targets):
    outputs = torch.func.functional_call(model, state, (inputs,))
    return float((outputs.argmax(-1) == targets).double().mean())


if __name__ == "__main__":
    main()

"""Share of the noise ceiling that data attribution reaches: metagradients against TRAK and ridge.

    python benchmarks/metagradient.py [mlp] [cnn] [mnist] [same_seed]

Half subsets, fresh seeds, 4 runs a subset; outputs are log-odds of the right class. ``mlp`` is 500
digits, a 64-32-10 network with GELU, 8 epochs of SGD with momentum; ``cnn`` the digits CNN of
docs/scoring.md (ReLU, AdamW); ``mnist`` 2,000 examples and a 784-64-10 network, from
../shared/data. ``same_seed`` trains the mlp again with the seed of the metagradient, leaving out 1
to 50% of the data. Costs are processor seconds, as trainings on half the data (vectorised), a
target and seed.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import reporting
import torch
from torch import nn

from coarlib.baselines.examples import LabelledData, trak_scores
from coarlib.history.queries import Queries
from coarlib.metagradient import metagradients_of_seeds
from coarlib.metagradient.smoothness import reweighted
from coarlib.metagradient.sweep import Sweep
from coarlib.metagradient.trained import recorded_run
from coarlib.outputs import margin_log_sum_exp
from coarlib.regression import fit
from coarlib.retraining import Trainer, train_many
from coarlib.scoring import lds, noise_ceiling
from estimate.digits.model import digits
from estimate.digits_subsets.task import trainer as digits_trainer

SUBSETS, RUNS = 80, 4
SEEDS = {"mlp": 32, "cnn": 32, "mnist": 32}
AVERAGED = (1, 2, 4, 8, 16, 32)
MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist_train10000_test3000.npz"


def network(inputs, hidden):
    layers = nn.Flatten(), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 10)
    return nn.Sequential(*layers)


def mlp():
    images, labels = digits(held_out=False)
    tests = digits(held_out=True)
    options = {"lr": 0.15, "momentum": 0.9}
    made = Trainer(
        lambda: network(64, 32), images[:500], labels[:500], 8, 100, torch.optim.SGD, options
    )
    return made, tests[0][:60], tests[1][:60]


def cnn():
    tests = digits(held_out=True)
    return digits_trainer("cnn"), tests[0][:30], tests[1][:30]


def mnist():
    with np.load(MNIST, allow_pickle=False) as file:
        x, y = (torch.from_numpy(file[f"{name}_train"][:2000]) for name in "xy")
        tests = [torch.from_numpy(file[f"{name}_test"][:30]) for name in "xy"]
    options = {"lr": 0.1, "momentum": 0.9}
    made = Trainer(
        lambda: network(784, 64), x.float() / 255, y.long(), 5, 200, torch.optim.SGD, options
    )
    return made, tests[0].float() / 255, tests[1].long()


def measure(name, made, inputs, targets):
    count = made.num_examples
    rng = np.random.default_rng(5)
    masks = np.zeros((SUBSETS, count), bool)
    for row in masks:
        row[rng.permutation(count)[: count // 2]] = True
    begun = time.process_time()
    subsets = [np.flatnonzero(row) for row in masks for _ in range(RUNS)]
    models = train_many(made, subsets, list(range(10_000, 10_000 + len(subsets))), "cpu")
    retraining = (time.process_time() - begun) / len(subsets)
    outputs = margins(models, inputs, targets).reshape(SUBSETS, RUNS, -1)
    full = train_many(made, [np.arange(count)] * 10, list(range(10)), "cpu")
    train, test = LabelledData(made.inputs, made.targets), LabelledData(inputs, targets)
    scores = {"trak:10": trak_scores(full, train, test, margin_log_sum_exp)}
    begun, seeds = time.process_time(), SEEDS[name]
    options = {"output": "log_odds", "out": f"out/metagradient/{name}", "removals": 6}
    found = metagradients_of_seeds(made, inputs, targets, range(seeds), kept=0.5, **options)
    spent = time.process_time() - begun
    for averaged in AVERAGED:
        if averaged <= seeds:
            some = replace(
                found, effects=found.effects[:averaged], trained=found.trained[:averaged]
            )
            scores[f"metagradient:{averaged}"] = some.scores
    if name == "mlp":
        options["out"] += "_on_all"
        everything = metagradients_of_seeds(made, inputs, targets, range(seeds), **options)
        scores[f"metagradient:{seeds} on all the data"] = everything.scores
    ceiling = noise_ceiling(outputs)
    rows = {}
    for method, values in scores.items():
        result = lds(values, masks, outputs)
        low, high = result.interval.low, result.interval.high
        rows[method] = {
            "lds": result.mean,
            "interval": [low, high],
            "share_of_ceiling": result.mean / ceiling.mean,
        }
        print(f"{name} {method:<16} {result.mean:.3f} ({low:.3f} to {high:.3f}), ", end="")
        print(f"{result.mean / ceiling.mean:.0%} of the ceiling {ceiling.mean:.3f}", flush=True)
    return {
        "regime": f"{SUBSETS} half subsets, {RUNS} runs, fresh seeds, {len(targets)} targets",
        "ceiling": ceiling.mean,
        "methods": rows,
        "smoothness": found.smoothness.correlation,
        "halves_trained_per_target_and_seed": spent / seeds / len(targets) / retraining,
        "ridge_rows": ridge(made, inputs, targets, masks, outputs, ceiling),
    }


def ridge(made, inputs, targets, masks, outputs, ceiling, rows=400):
    """LDS of ridge on other retrainings, one run each."""
    rng = np.random.default_rng(6)
    other = np.zeros((rows, masks.shape[1]), bool)
    for row in other:
        row[rng.permutation(masks.shape[1])[: masks.shape[1] // 2]] = True
    seeds = list(range(50_000, 50_000 + rows))
    models = train_many(made, [np.flatnonzero(row) for row in other], seeds, "cpu")
    found = fit((other, margins(models, inputs, targets)), "ridge")
    result = lds(found.weight, masks, outputs)
    return {"rows": rows, "lds": result.mean, "share_of_ceiling": result.mean / ceiling.mean}


def same_seed(made, inputs, targets, removals=60):
    """LDS of one metagradient where the same seed is trained again without some of the data."""
    count = made.num_examples
    run = recorded_run(made, np.arange(count), 0)
    queries = Queries(run.model, inputs, targets, "log_odds")
    queries.count_outputs(run.walk.theta(0))
    every = torch.arange(len(targets))
    scores = Sweep(run, queries, lambda: None).of(every)[:, 0].numpy().T
    rng, found = np.random.default_rng(5), {}
    for share in (0.01, 0.05, 0.2, 0.5):
        masks = np.ones((removals, count), bool)
        for row in masks:
            row[rng.permutation(count)[: int(count * share)]] = False
        theta = reweighted(run, torch.from_numpy(masks).to(run.walk.dtype))
        rows = [{name: v[k] for name, v in theta.items()} for k in range(removals)]
        outputs = np.stack([queries.values(row, every)[:, 0].numpy() for row in rows])
        result = lds(scores, masks, outputs)
        found[str(share)] = {
            "lds": result.mean,
            "interval": [result.interval.low, result.interval.high],
        }
        print(f"same seed, {share:.0%} left out: {result.mean:.3f} {result.interval}", flush=True)
    return found


def margins(models, inputs, targets):
    with torch.no_grad():
        return np.stack([margin_log_sum_exp(m.eval()(inputs), targets).numpy() for m in models])


def main():
    made = {"mlp": mlp, "cnn": cnn, "mnist": mnist}
    file = reporting.RESULTS / "metagradient.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    for name in sys.argv[1:] or [*made, "same_seed"]:
        found = same_seed(*mlp()) if name == "same_seed" else measure(name, *made[name]())
        results[name] = found
        reporting.save("metagradient", results, "torch", "numpy", "scipy")


if __name__ == "__main__":
    main()

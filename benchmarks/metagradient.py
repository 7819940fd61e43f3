"""Share of the noise ceiling that data attribution reaches: metagradients against TRAK and ridge.

    python benchmarks/metagradient.py [mlp] [cnn] [mnist] [same_seed] [rates] [cost]

Half subsets, fresh seeds, 4 runs a subset; outputs are log-odds of the right class. ``mlp`` is 500
digits, a 64-32-10 network with GELU, 8 epochs of SGD with momentum; ``cnn`` the digits CNN of
docs/scoring.md (ReLU, AdamW); ``mnist`` 2,000 examples and a 784-64-10 network, from
../shared/data. TRAK is of 10 models, on all the data or on the halves of the first 10 seeds; the
latter is also what metagradients are drawn toward. ``same_seed`` trains the mlp again with the seed
of the metagradient, leaving out 1 to 50% of the data, for 8 such seeds; ``rates`` with other
learning rates. ``cost`` trains half the data and differentiates 100 outputs, with two threads:
seconds a target as trainings, also processor seconds with one thread, and the peak memory of a
process that does either. Banks, models' scores and derivatives are kept in
out/metagradient, so that a run that stopped goes on.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import reporting
import torch
from scipy import stats
from torch import nn

from coarlib.baselines.examples import LabelledData, trak_scores
from coarlib.history.queries import Queries
from coarlib.metagradient import metagradients_of_seeds
from coarlib.metagradient.derivatives import draw_shares
from coarlib.metagradient.smoothness import reweighted
from coarlib.metagradient.sweep import Sweep
from coarlib.metagradient.trained import recorded_run
from coarlib.outputs import margin_log_sum_exp
from coarlib.regression import fit
from coarlib.retraining import Trainer, train_many
from coarlib.scoring import compare, lds, noise_ceiling
from estimate.digits.model import digits
from estimate.digits_subsets.task import trainer as digits_trainer

SUBSETS, RUNS = 80, 4
SEEDS = {"mlp": 32, "cnn": 64, "mnist": 32}
RATES = (0.1, 0.175, 0.2)
AVERAGED = (1, 2, 4, 8, 16, 32, 64)
OUT = Path("out/metagradient")
MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist_train10000_test3000.npz"


def network(inputs, hidden):
    layers = nn.Flatten(), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 10)
    return nn.Sequential(*layers)


def mlp(rate=0.15):
    images, labels = digits(held_out=False)
    tests = digits(held_out=True)
    options = {"lr": rate, "momentum": 0.9}
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


def halves(seed, rows, count):
    rng = np.random.default_rng(seed)
    masks = np.zeros((rows, count), bool)
    for row in masks:
        row[rng.permutation(count)[: count // 2]] = True
    return masks


def kept(file, compute):
    """What ``compute`` returned when the file was not there."""
    file = OUT / f"{file}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, compute())
    return np.load(file)


def outputs_of(made, inputs, targets, masks, first_seed, runs):
    subsets = [np.flatnonzero(row) for row in masks for _ in range(runs)]
    seeds = list(range(first_seed, first_seed + len(subsets)))
    models = train_many(made, subsets, seeds, "cpu")
    return margins(models, inputs, targets).reshape(len(masks), runs, -1)


def trak(made, inputs, targets):
    everything = [np.arange(made.num_examples)] * 10
    full = train_many(made, everything, list(range(10)), "cpu")
    train, test = LabelledData(made.inputs, made.targets), LabelledData(inputs, targets)
    return trak_scores(full, train, test, margin_log_sum_exp)


def trak_on_halves(made, inputs, targets):
    """TRAK of each of the first 10 seeds' models, [10, N, T]."""
    shares = draw_shares(made.num_examples, range(10), 0.5)
    train, test = LabelledData(made.inputs, made.targets), LabelledData(inputs, targets)
    models = train_many(made, list(shares), list(range(10)), "cpu")
    return np.stack([trak_scores([model], train, test, margin_log_sum_exp) for model in models])


def measure(name, made, inputs, targets):
    masks, seeds = halves(5, SUBSETS, made.num_examples), SEEDS[name]
    bank = made, inputs, targets, masks, 10_000, RUNS
    outputs = kept(f"{name}_outputs", lambda: outputs_of(*bank))
    scores = {"trak:10": kept(f"{name}_trak", lambda: trak(made, inputs, targets))}
    parts = kept(f"{name}_trak_on_halves", lambda: trak_on_halves(made, inputs, targets))
    scores["trak:10 on halves"] = parts.mean(0)
    options = {"output": "log_odds", "out": OUT / name, "removals": 6}
    found = metagradients_of_seeds(made, inputs, targets, range(seeds), kept=0.5, **options)
    for averaged in AVERAGED:
        if averaged <= seeds:
            some = replace(
                found, effects=found.effects[:averaged], trained=found.trained[:averaged]
            )
            scores[f"metagradient:{averaged}"] = some.scores
            if averaged >= 4:
                scores[f"metagradient:{averaged} and trak"] = some.toward(parts[:averaged].mean(0))
    if name == "mlp":
        options["out"] = OUT / f"{name}_on_all"
        everything = metagradients_of_seeds(made, inputs, targets, range(seeds), **options)
        scores[f"metagradient:{seeds} on all the data"] = everything.scores
    ceiling = noise_ceiling(outputs)
    results = {method: lds(values, masks, outputs) for method, values in scores.items()}
    rows = {}
    for method, result in results.items():
        low, high = result.interval.low, result.interval.high
        rows[method] = {
            "lds": result.mean,
            "interval": [low, high],
            "share_of_ceiling": result.mean / ceiling.mean,
        }
        print(f"{name} {method:<25} {result.mean:.3f} ({low:.3f} to {high:.3f}), ", end="")
        print(f"{result.mean / ceiling.mean:.0%} of the ceiling {ceiling.mean:.3f}", flush=True)
    pairs = {
        "over_trak": ("metagradient:32", "trak:10"),
        "over_trak_on_halves": ("metagradient:32", "trak:10 on halves"),
        "with_trak_over_trak_on_halves": ("metagradient:32 and trak", "trak:10 on halves"),
    }
    found_pairs = {key: compare(*(results[one] for one in pair)) for key, pair in pairs.items()}
    return {
        "regime": f"{SUBSETS} half subsets, {RUNS} runs, fresh seeds, {len(targets)} targets",
        "ceiling": ceiling.mean,
        "ceiling_interval": [ceiling.interval.low, ceiling.interval.high],
        "methods": rows,
        **{
            key: [against.difference, against.interval.low, against.interval.high]
            for key, against in found_pairs.items()
        },
        "smoothness": found.smoothness.correlation,
        "ridge_rows": ridge(name, made, inputs, targets, masks, outputs, ceiling),
    }


def ridge(name, made, inputs, targets, masks, outputs, ceiling, rows=400):
    """LDS of ridge on other retrainings, one run each."""
    other = halves(6, rows, masks.shape[1])
    bank = made, inputs, targets, other, 50_000, 1
    fitted = fit((other, kept(f"{name}_rows", lambda: outputs_of(*bank))[:, 0]), "ridge")
    result = lds(fitted.weight, masks, outputs)
    return {"rows": rows, "lds": result.mean, "share_of_ceiling": result.mean / ceiling.mean}


def same_seed(made, inputs, targets, removals=60, seeds=8):
    """LDS of one metagradient where its seed is trained again without some of the data."""
    found = {}
    for seed in range(seeds):
        for share, result in of_one_seed(made, inputs, targets, removals, seed).items():
            found.setdefault(str(share), []).append(result)
    rows = {}
    for share, results in found.items():
        each = np.array([result.mean for result in results])
        # Of a single seed: they scatter more than the interval over subsets says.
        wide = stats.t.ppf(0.975, seeds - 1) * each.std(ddof=1) * (1 + 1 / seeds) ** 0.5
        rows[share] = {
            "lds": each.mean(),
            "interval": [each.mean() - wide, min(1.0, each.mean() + wide)],
            "seeds": each.tolist(),
        }
        print(f"same seed, {float(share):.0%} left out: {rows[share]}", flush=True)
    return rows


def of_one_seed(made, inputs, targets, removals, seed):
    count = made.num_examples
    run = recorded_run(made, np.arange(count), seed)
    queries, every = queries_of(run, inputs, targets), torch.arange(len(targets))
    scores = Sweep(run, queries, lambda: None).of(every)[:, 0].numpy().T
    rng, found = np.random.default_rng(5), {}
    for share in (0.01, 0.05, 0.2, 0.5):
        masks = np.ones((removals, count), bool)
        for row in masks:
            row[rng.permutation(count)[: int(count * share)]] = False
        theta = reweighted(run, torch.from_numpy(masks).to(run.walk.dtype))
        rows = [{name: v[k] for name, v in theta.items()} for k in range(removals)]
        outputs = np.stack([queries.values(row, every)[:, 0].numpy() for row in rows])
        found[share] = lds(scores, masks, outputs)
    return found


def margins(models, inputs, targets):
    with torch.no_grad():
        return np.stack([margin_log_sum_exp(m.eval()(inputs), targets).numpy() for m in models])


def costs(name, made, inputs, targets, repeats=4):
    """Seconds of 100 outputs' derivatives, as trainings, and the memory of both."""
    half = np.arange(made.num_examples // 2)
    run = recorded_run(made, half, 0)
    sweep = Sweep(run, queries_of(run, inputs, targets), lambda: None)
    every = torch.arange(len(targets))
    calls = {"training": lambda: made.run(half, 0), "sweep": lambda: sweep.of(every)}
    torch.set_num_threads(1)
    times = reporting.best_times(repeats, **calls)
    processor = {what: found for what, (_, found) in times.items()}
    torch.set_num_threads(2)
    seconds = reporting.best_seconds(repeats, **calls)
    command = [sys.executable, __file__, "peak", name]
    peaks = [subprocess.check_output([*command, what], text=True) for what in ("train", "all")]
    before, training, both = (
        *map(float, peaks[0].split()),
        float(peaks[1].split()[1]),
    )
    found = {
        "updates": len(run.walk.numbers),
        "seconds": seconds,
        "trainings_per_target_and_seed": seconds["sweep"] / seconds["training"] / len(targets),
        "processor_seconds": processor,
        "trainings_by_processor": processor["sweep"] / processor["training"] / len(targets),
        "peak_mb": {"imported": before, "training": training, "training and derivatives": both},
        "memory_as_trainings": both / training,
    }
    print(name, found, flush=True)
    return found


def peak(name, what):
    """Print the megabytes of a process before it trains, or does all, and their peak after."""
    torch.set_num_threads(2)
    made, inputs, targets = hundred(name)
    half = np.arange(made.num_examples // 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status_mb("VmRSS")
    if what == "train":
        made.run(half, 0)
    else:
        options = {"output": "log_odds", "removals": 0, "quiet": True}
        metagradients_of_seeds(made, inputs, targets, [0], kept=0.5, **options)
    print(before, status_mb("VmHWM"))


def status_mb(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1e3


def hundred(name):
    """A trainer and 100 test points."""
    made = MADE[name]()[0]
    if name != "mnist":
        return made, *(part[:100] for part in digits(held_out=True))
    with np.load(MNIST, allow_pickle=False) as file:
        x, y = (torch.from_numpy(file[f"{name}_test"][:100]) for name in "xy")
    return made, x.float() / 255, y.long()


def queries_of(run, inputs, targets):
    queries = Queries(run.model, inputs, targets, "log_odds")
    queries.count_outputs(run.walk.theta(0))
    return queries


MADE = {"mlp": mlp, "cnn": cnn, "mnist": mnist}


def main():
    if sys.argv[1:2] == ["peak"]:
        peak(*sys.argv[2:])
        return
    file = reporting.RESULTS / "metagradient.json"
    for name in sys.argv[1:] or [*MADE, "same_seed", "rates", "cost"]:
        if name == "same_seed":
            found = same_seed(*mlp())
        elif name == "rates":
            found = {str(rate): same_seed(*mlp(rate)) for rate in RATES}
        elif name == "cost":
            found = {kind: costs(kind, *hundred(kind)) for kind in MADE}
            found["machine"] = reporting.machine()  # parts may be measured on several
        else:
            found = measure(name, *MADE[name]())
        results = json.loads(file.read_text())["results"] if file.exists() else {}
        results[name] = found
        reporting.save("metagradient", results, "torch", "numpy", "scipy")


if __name__ == "__main__":
    main()

"""Held-out correlation against cost: rows, leave-one-out, gradients, gradient passes, all joined.

    python benchmarks/frontier.py                          # digits and ResNet-20
    python benchmarks/frontier.py --models resnet32        # others, only printed

Cost is counted in forward passes over the examples, of everything that went into a result; a pass
with its backward pass counts as three. Each method is given the same budgets and judged on the same
fresh ablations, which nothing was fitted on. Seeds draw which of the stored rows and blocks of
passes a fit gets (at the largest budget that is nearly all of them, so seeds differ less there).

rows, shared prior        ablations alone
informed prior            mean gradients of 16 ablated models (48 passes), then ablations
passes                    gradient passes, and 8 ablations for the means
joined                    half the budget in passes, half in ablations
joined, all orders        the same evidence, predictions by the surrogate
leave one out             one row a component, at whatever that costs
gradient × parameter      three passes
"""

import argparse
from pathlib import Path

import numpy as np
import reporting
import torch

import coarlib as cl
from coarlib.baselines.components import leave_one_out
from coarlib.baselines.evaluation import baseline, measure
from coarlib.baselines.mean_gradients import ablated_masks, group_index, mean_gradients
from coarlib.filling.worker import FillOptions
from coarlib.gradient_passes import fill_passes, open_passes, read_passes
from coarlib.regression import StoreRows
from coarlib.regression.solvers import Bayes, InformedPrior, SharedPrior
from coarlib.regression.surrogate import surrogate_of
from coarlib.setups import load

DATA = reporting.ROOT.parent / "shared" / "data"
CPU, KEY = torch.device("cpu"), "test_margins"
HELD, PASSES, MODELS, FOR_MEANS = 400, 128, 16, 8
BUDGETS, SEEDS = "100,200,400,1000", 2
TARGETS = 150


def cifar(name):
    images = np.load(DATA / "cifar10_test1000_lossless.npz")
    out = Path("out/frontier")
    out.mkdir(parents=True, exist_ok=True)
    few = out / "images100.npz"
    np.savez(few, x=images["x"][:100], y=images["y"][:100])
    path = next(DATA.glob(f"akamaster_{name}-*.th"))
    return load("cifar_resnet", {"model_path": path, "beton_path": str(few), "batch_size": 100})


TASKS = {
    "digits": (0.1, 1200, lambda: load("digits")),
    "resnet20": (0.05, 1000, lambda: cifar("resnet20")),
    "resnet32": (0.05, 1000, lambda: cifar("resnet32")),
}


def evidence(name, out, alone=True):
    """Fill a store with rows and passes; measure gradients and, if wanted, one row a component."""
    share, rows, make = TASKS[name]
    task = make()
    task.prepare(CPU)
    store = cl.Store.create(out / name, task, rows + HELD, round(1 - share, 2), device="cpu")
    cl.fill(store, task, device="cpu")
    fill_passes(store, task, PASSES, CPU, options=FillOptions())
    kept = out / f"{name}_others.npz"
    if not kept.exists():
        count = len(task.component_set)
        lone = np.empty((0, task.num_examples))
        if alone:
            masks = np.ones((count + 1, count), bool)
            np.fill_diagonal(masks, False)
            lone = leave_one_out(masks, measure(task, masks, KEY, "leaving one out"))
        mean = mean_gradients(task, ablated_masks(count, share, MODELS), KEY)
        plain = baseline("gradient_parameter", task, KEY).scores
        np.savez(kept, lone=lone, mean=mean, plain=plain, groups=group_index(task.component_set))
    return store, np.load(kept)


class Frontier:
    """The methods on one model."""

    def __init__(self, store, others):
        self.store, self.groups = store, others["groups"]
        self.blocks = len(open_passes(store).completed_rows())
        step = max(1, others["plain"].shape[1] // TARGETS)
        self.targets = slice(0, None, step)
        source = StoreRows(store, targets=self.targets)
        masks, outputs = source.read(np.arange(len(source.row_ids)))
        self.masks, self.outputs = masks[:-HELD], outputs[:-HELD].astype(float)
        self.fresh, self.truth = masks[-HELD:], outputs[-HELD:].astype(float)
        self.lone, self.mean, self.plain = (
            others[key][:, self.targets] for key in ("lone", "mean", "plain")
        )

    def score(self, predicted):
        return float(np.nanmean(cl.correlate(predicted, self.truth, "pearson").r))

    def rows(self, count, seed):
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.masks), count, replace=False))
        return self.masks[chosen], self.outputs[chosen]

    def passes(self, count, seed):
        blocks = np.random.default_rng(100 + seed).permutation(self.blocks)
        return read_passes(self.store, self.targets, blocks=np.sort(blocks[: count // 8]))

    def fit(self, rows, solver):
        return cl.fit(*rows, solver, held_out=0, device="cpu")

    def measure(self, budget, seed):
        """{method: (cost, correlation)} at one budget."""
        found = {}

        def keep(method, cost, predict):
            found[method] = cost, self.score(predict(self.fresh))

        keep("rows, shared prior", budget,
             self.fit(self.rows(budget, seed), SharedPrior()).predict)  # fmt: skip
        if budget >= 3 * MODELS + 20:
            solver = InformedPrior(scores=self.mean, groups=self.groups)
            rows = self.rows(budget - 3 * MODELS, seed)
            keep("informed prior", budget, self.fit(rows, solver).predict)
        count = 8 * round((budget - FOR_MEANS) / 24)
        if 8 <= count <= 8 * self.blocks:
            solver = Bayes(passes=self.passes(count, seed), groups=self.groups)
            cost = 3 * count + FOR_MEANS
            keep("passes", cost, self.fit(self.rows(FOR_MEANS, seed), solver).predict)
        count = min(8 * self.blocks, 8 * round(budget / 48))
        if count >= 8:
            passes, rows = self.passes(count, seed), self.rows(budget - 3 * count, seed)
            solver = Bayes(passes=passes, groups=self.groups)
            keep("joined", budget, self.fit(rows, solver).predict)
            keep("joined, all orders", budget, surrogate_of(*rows, passes, self.groups).predict)
        return found

    def table(self, budgets, seeds):
        lines = []
        for budget in budgets:
            if budget > len(self.masks):
                continue
            each = [self.measure(budget, seed) for seed in range(seeds)]
            for method in each[0]:
                scores = [found[method][1] for found in each]
                lines.append(self.line(method, each[0][method][0], scores))
        for method, cost, scores in (
            ("leave one out", len(self.lone) + 1, self.lone),
            ("gradient × parameter", 3, self.plain),
        ):
            if not len(scores):
                continue
            lines.append(self.line(method, cost, [self.score(self.fresh.astype(float) @ scores)]))
        return lines

    def line(self, method, cost, scores):
        line = {
            "method": method,
            "forward_passes": cost,
            "correlation": round(float(np.mean(scores)), 4),
            "sd_over_seeds": round(float(np.std(scores)), 4),
        }
        print(line, flush=True)
        return line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="digits,resnet20")
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--alone", default="digits", help="where to leave one out as well")
    args = parser.parse_args()
    reporting.one_thread()
    results = {}
    for name in args.models.split(","):
        print(name)
        alone = name in args.alone.split(",")
        budgets = [int(budget) for budget in args.budgets.split(",")]
        results[name] = Frontier(*evidence(name, args.out, alone)).table(budgets, args.seeds)
    if args.models == "digits,resnet20":
        reporting.save("frontier", results, "torch")


if __name__ == "__main__":
    main()

"""Held-out correlation against cost: rows, leave-one-out, gradients, gradient passes, all joined.

    python benchmarks/frontier.py
    python benchmarks/frontier.py --models tinyllama     # one of them, only printed

Cost is counted in forward passes over the examples, of everything that went into a result; a pass
with its backward pass counts as three. Each method is given the same budgets and judged on the same
fresh ablations (digits 4,400, ResNet-20 1,400, others 400), which nothing was fitted on. Seeds draw
which of the stored rows, passes and trials a fit gets (at the largest budget nearly all of the
rows, so seeds differ less there).
What was measured is kept in --out, and not measured again.

rows, shared prior        ablations alone
informed prior            mean gradients of 16 ablated models (48 passes), then ablations
passes                    gradient passes, and 8 ablations for the means
joined                    half the budget in passes, half in ablations
joined, all orders        the same evidence, predictions by the surrogate
leave one out             one row a component, at whatever that costs
leave one out, then rows  as prior means of a fit of the ablations that the budget leaves
attribute                 what the autopilot buys
gradient × parameter      three passes
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import reporting
from evidence import ALL, FITTED, MODELS, evidence
from replay import Exhausted, Replay

import coarlib as cl
from coarlib.autopilot.choices import FIRST, Goal
from coarlib.autopilot.judge import Known
from coarlib.autopilot.run import pursue
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.regression.solvers import Bayes, InformedPrior, SharedPrior
from coarlib.regression.surrogate import surrogate_of

FOR_MEANS, BLOCK = 8, 8
BUDGETS, SEEDS = "50,100,200,400,1000", 5
TARGETS = 60
MOST_ALL_ORDERS = 2000  # the surrogate decomposes a matrix of rows


class Frontier:
    """The methods on one model."""

    def __init__(self, store, others):
        step = max(1, others["plain"].shape[1] // TARGETS)
        self.replay = Replay(store, others["lone"], step)
        self.groups = others["groups"]
        self.lone, self.mean, self.plain = (
            others[key][:, ::step] for key in ("lone", "mean", "plain")
        )
        self.rows_there = FITTED
        self.passes_there = BLOCK * len(self.replay.blocks)

    def score(self, predict):
        masks, truth = self.replay.fresh
        return float(np.nanmean(cl.correlate(predict(masks), truth, "pearson").r))

    def rows(self, count):
        chosen = np.sort(self.replay.order[:count])
        return self.replay.masks[chosen], self.replay.outputs[chosen]

    def fit(self, count, solver):
        return cl.fit(*self.rows(count), solver, held_out=0, device="cpu").predict

    def measure(self, budget, seed):
        """Yield (method, cost, correlation) at one budget."""
        self.replay.seeded(seed)
        if budget <= self.rows_there:
            predict = self.fit(budget, SharedPrior())
            yield "rows, shared prior", budget, self.score(predict)
        left = budget - PASS_COST * MODELS
        if 20 <= left <= self.rows_there:
            solver = InformedPrior(scores=self.mean, groups=self.groups)
            yield "informed prior", budget, self.score(self.fit(left, solver))
        left = budget - len(self.lone) - 1
        if 20 <= left <= self.rows_there:
            solver = InformedPrior(scores=self.lone, groups=self.groups)
            yield "leave one out, then rows", budget, self.score(self.fit(left, solver))
        count = BLOCK * round((budget - FOR_MEANS) / (PASS_COST * BLOCK))
        if BLOCK <= count <= self.passes_there:
            solver = Bayes(passes=self.replay.passes(count), groups=self.groups, draws=0)
            cost = PASS_COST * count + FOR_MEANS
            yield "passes", cost, self.score(self.fit(FOR_MEANS, solver))
        count = BLOCK * max(1, round(budget / (2 * PASS_COST * BLOCK)))
        left = budget - PASS_COST * count
        if count <= self.passes_there and left >= 20:
            passes = self.replay.passes(count)
            solver = Bayes(passes=passes, groups=self.groups, draws=0)
            yield "joined", budget, self.score(self.fit(left, solver))
            if budget <= MOST_ALL_ORDERS:
                predict = surrogate_of(*self.rows(left), passes, self.groups).predict
                yield "joined, all orders", budget, self.score(predict)
        if budget >= FIRST.cost:
            yield from self.autopilot(budget)

    def autopilot(self, budget):
        try:
            now, _ = pursue(self.replay, Goal(budget=budget), lambda *line: None, time.monotonic())
        except Exhausted:
            return
        found = Known.of(self.replay, now.amounts, slice(None)).fit()
        yield "attribute", now.amounts.cost, self.score(found.predict)

    def once(self):
        """Yield methods that have one cost."""
        for method, cost, scores in (
            ("leave one out", len(self.lone) + 1, self.lone),
            ("gradient × parameter", PASS_COST, self.plain),
        ):
            yield method, cost, self.score(lambda x, s=scores: x.astype(float) @ s)


def measured(name, out, budgets, seeds):
    """Measure what is not in ``out`` yet, and return {budget/seed: lines}."""
    kept = out / f"{name}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    wanted = [f"{budget}/{seed}" for budget in budgets for seed in range(seeds)]
    missing = [key for key in ["once", *wanted] if key not in found]
    if missing:
        frontier = Frontier(*evidence(name, out))
        for key in missing:
            lines = (
                frontier.once() if key == "once" else frontier.measure(*map(int, key.split("/")))
            )
            found[key] = [list(line) for line in lines]
            print(name, key, found[key], flush=True)
            kept.write_text(json.dumps(found))
    return {key: found[key] for key in ["once", *wanted]}


def table(found):
    """Mean and spread over seeds of every method at every budget."""
    cells = {}
    for key, lines in found.items():
        for method, cost, correlation in lines:
            cells.setdefault((key.split("/")[0], method), []).append((cost, correlation))
    return [
        {
            "method": method,
            "forward_passes": round(float(np.mean([cost for cost, _ in cell]))),
            "correlation": round(float(np.mean([r for _, r in cell])), 4),
            "sd_over_seeds": round(float(np.std([r for _, r in cell])), 4),
            "seeds": len(cell),
            **({} if key == "once" else {"budget": int(key)}),
        }
        for (key, method), cell in cells.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(ALL))
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    reporting.one_thread()
    budgets = [int(budget) for budget in args.budgets.split(",")]
    results = {
        name: table(measured(name, args.out, budgets, args.seeds))
        for name in args.models.split(",")
    }
    for name, lines in results.items():
        reporting.table(name, [{"budget": "-", **line} for line in lines])
    if args.models == parser.get_default("models"):
        reporting.save("frontier", results, "torch")


if __name__ == "__main__":
    main()

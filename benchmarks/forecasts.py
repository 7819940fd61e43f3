"""Whether the autopilot stops where it should: replayed from stored rows and gradient passes.

    python benchmarks/forecasts.py --models digits --out out/frontier

Results are added to benchmarks/results/forecasts.json.

For each model and seed the autopilot is asked for a held-out correlation, and buys from the stored
evidence of benchmarks/frontier.py in an order that the seed draws. Then: what it spent against what
the cheapest method of the frontier needs to reach that correlation on fresh ablations (the mean
curves, interpolated in the logarithm of the cost; a method that needs no rows to judge and whose
cost is known is no fair rival, but the best there is); whether the interval it said holds the
correlation on all ablations that it did not buy, whose own standard error is allowed for; and what
it forecast of the next purchase against what that brought.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import reporting
from evidence import evidence
from frontier import TARGETS
from replay import Exhausted, Replay

from coarlib.autopilot.choices import Goal
from coarlib.autopilot.judge import Known
from coarlib.autopilot.run import pursue
from coarlib.regression.heldout import score_arrays

WANTED = {
    "digits": (0.82, 0.83, 0.84),
    "resnet20": (0.7, 0.72, 0.74),
    "resnet32": (0.68, 0.71, 0.74),
    "tinyllama": (0.82, 0.85, 0.87),
    "modular": (0.88, 0.9, 0.91),
}
WITHIN = 0.15


def fitted(replay, amounts):
    """The fit of all that was bought."""
    return Known.of(replay, amounts, slice(None)).fit()


def truth(replay, found):
    """Correlation on all rows and trials that were not bought, and its standard error.

    Rows move all targets together and trials each alone, so that the two err independently; their
    mean is weighted by what each knows.
    """
    unused = np.setdiff1d(np.arange(len(replay.masks)), replay.positions(replay.have.rows))
    parts = [score_arrays(found.predict(replay.masks[unused]), replay.outputs[unused])]
    if (trials := replay.unused_trials()) is not None:
        masks = trials.masks(slice(None), found.weight.shape[0]) - (1 - trials.plan.fraction)
        predicted = np.einsum("tkn,nt->kt", masks, found.weight)
        parts.append(score_arrays(predicted, trials.outputs))
    known = np.array([len(part.influence) / part.influence.var() for part in parts])
    means = np.array([part.mean for part in parts])
    return float(means @ known / known.sum()), float(known.sum() ** -0.5)


def covers(run):
    """Whether an interval holds the truth, as well as that is known."""
    off = run["really"] - run["said"]
    half = run["high"] - run["said"] if off > 0 else run["said"] - run["low"]
    return abs(off) <= np.hypot(half, 1.96 * run["really, standard error"])


def oracle(frontier, wanted):
    """The smallest cost at which a method's mean curve reaches a correlation; None if none does."""
    curves = {}
    for line in frontier:
        if line["method"] != "attribute":
            curves.setdefault(line["method"], []).append(
                (np.log(line["forward_passes"]), line["correlation"])
            )
    costs = []
    for points in curves.values():
        cost, height = (np.array(x) for x in zip(*sorted(points), strict=True))
        height = np.maximum.accumulate(height)
        if height[0] >= wanted:
            costs.append(np.exp(cost[0]))
        elif height[-1] >= wanted:
            at = int(np.argmax(height >= wanted))
            share = (wanted - height[at - 1]) / (height[at] - height[at - 1])
            costs.append(np.exp(cost[at - 1] + share * (cost[at] - cost[at - 1])))
    return min(costs, default=None)


def stop(replay, wanted):
    """One run: what it spent, said and really reached; what it forecast, and what came of it."""
    steps = []
    try:
        now, ahead = pursue(
            replay, Goal(until=wanted), lambda now, why: steps.append(now), time.monotonic()
        )
    except Exhausted:
        return {"wanted": wanted, "exhausted": True}
    have, scores = now.amounts, now.scores
    really, error = truth(replay, fitted(replay, have))
    found = {
        "wanted": wanted,
        "cost": have.cost,
        "rows": have.rows,
        "passes": have.passes,
        "trials": have.trials,
        "alone": have.alone,
        "purchases": len(steps),
        "said": scores.mean,
        "low": scores.mean_low,
        "high": scores.mean_high,
        "really": really,
        "really, standard error": error,
    }
    for what in ("passes", "trials"):
        more = replace(have, **{what: 2 * getattr(have, what)})
        try:
            replay.buy(more)
        except Exhausted:
            continue
        gained = truth(replay, fitted(replay, more))[0] - really
        found[f"twice {what}"] = [getattr(ahead, what), gained]
    return found


def summary(runs, frontier):
    """What the runs of a model say together."""
    stopped = [run for run in runs if "cost" in run]
    with_oracle = [
        (run["cost"], best) for run in stopped if (best := oracle(frontier, run["wanted"]))
    ]
    ratios = np.array([cost / best for cost, best in with_oracle])
    covered = [covers(run) for run in stopped]
    shown = {
        "runs": len(runs),
        "more was wanted than is stored": len(runs) - len(stopped),
        "cost against the oracle's, median": float(np.median(ratios)),
        "share within 15% of it": float(np.mean(np.abs(ratios - 1) <= WITHIN)),
        "share within 15% of it or below": float(np.mean(ratios <= 1 + WITHIN)),
        "share of intervals that cover": float(np.mean(covered)),
        "really less said, mean": float(np.mean([x["really"] - x["said"] for x in stopped])),
        "standard error of what is real, mean": float(
            np.mean([x["really, standard error"] for x in stopped])
        ),
        "reached, share": float(np.mean([x["really"] >= x["wanted"] for x in stopped])),
    }
    for what in ("passes", "trials"):
        pairs = np.array([x[f"twice {what}"] for x in stopped if f"twice {what}" in x])
        pairs = pairs[np.isfinite(pairs).all(1)] if len(pairs) else pairs
        if len(pairs):
            shown[f"twice {what}: forecast, mean"] = float(pairs[:, 0].mean())
            shown[f"twice {what}: came, mean"] = float(pairs[:, 1].mean())
    return {key: round(value, 4) for key, value in shown.items()}


def replayed(name, out, seeds):
    """Replay what is not in ``out`` yet."""
    kept = out / f"{name}_stops.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [seed for seed in range(seeds) if str(seed) not in found]
    if missing:
        store, others = evidence(name, out)
        step = max(1, others["plain"].shape[1] // TARGETS)
        replay = Replay(store, others["lone"], step)
    for seed in missing:
        wanted = WANTED[name][seed % len(WANTED[name])]
        found[str(seed)] = stop(replay.seeded(seed), wanted)
        print(name, seed, found[str(seed)], flush=True)
        kept.write_text(json.dumps(found))
    return [found[str(seed)] for seed in range(seeds)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="digits,resnet20")
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    reporting.one_thread()
    frontier = json.loads((reporting.RESULTS / "frontier.json").read_text())["results"]
    results = {
        name: summary(replayed(name, args.out, args.seeds), frontier[name])
        for name in args.models.split(",")
    }
    print(json.dumps(results, indent=1))
    file = reporting.RESULTS / "forecasts.json"
    before = json.loads(file.read_text())["results"] if file.is_file() else {}
    reporting.save("forecasts", before | results, "torch")


if __name__ == "__main__":
    main()

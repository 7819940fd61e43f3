"""How often the interval that `coar attribute` tells holds its correlation, simulated.

    python benchmarks/coverage_attribute.py [--worlds 200]

Results are added to benchmarks/results/coverage_attribute.json; what has as many worlds stays.

A world has true weights, alike among targets, of components that matter differently; gradient
passes whose slopes are the weights with noise, and too large by a tenth; trials, and a few rows,
whose outputs are sums of weights and of what no sum of weights explains. Everything is fitted and
cross-validated as the last step of `coar attribute` does. Or there are rows alone, and they judge.
The truth is that fit's correlation with the outputs of new trials, exactly, and its mean over
targets. Where too few judge there is no interval: the share of the worlds that have one is told.
"""

import argparse
import itertools
import json

import numpy as np
import reporting

from coarlib.autopilot.judge import Known
from coarlib.gradient_passes import PassPlan, PassSums, Trials
from coarlib.gradient_passes.plan import on_path
from coarlib.regression import ArrayRows

FEATURES, LAYERS, FRACTION = 60, 6, 0.1
SIZES = (  # targets, rows, gradient passes, trials
    *((1, 4, 64, 96), (1, 4, 64, 400)),
    *((20, 4, 16, 24), (20, 4, 16, 80), (20, 4, 32, 48), (20, 4, 64, 96)),
    (100, 4, 32, 48),
    *((1, 60, 0, 0), (1, 120, 0, 0), (1, 360, 0, 0)),
    *((20, 60, 0, 0), (20, 120, 0, 0), (20, 360, 0, 0), (20, 720, 0, 0)),
)
FEW = 4  # rows, where trials judge
UNEXPLAINED = (0.2, 0.5)
CASE = ("targets", "rows", "passes", "trials", "unexplained")
SEED, TOO_LARGE, NOISE_OF_SLOPES = 20_261_128, 1.1, 3.0


def world(rng, targets, rows, passes, trials, unexplained):
    """Return what was bought of a world, and its true weights [N, T]."""
    size = rng.lognormal(0, 1, FEATURES)
    alike = rng.normal(size=(FEATURES, 3)) @ rng.normal(size=(3, targets)) / 2
    weight = size[:, None] * (0.3 + alike + rng.normal(size=(FEATURES, targets)))
    variance = FRACTION * (1 - FRACTION) * np.square(weight).sum(0)
    noise = np.sqrt(variance * unexplained / (1 - unexplained))

    def outputs(masks):  # [K, T, N]
        found = np.einsum("ktn,nt->kt", masks, weight)
        return found + noise * rng.normal(size=found.shape)

    def drawn(plan, count):
        return np.stack([plan.draw(k, slice(0, targets), FEATURES) for k in range(count)])

    seed, which = int(rng.integers(2**32)), np.arange(targets)
    seen = own = None
    if passes:
        plan = PassPlan.for_fraction(FRACTION, seed=seed)
        masks = drawn(plan, passes)
        along = on_path(masks)
        spread = NOISE_OF_SLOPES * size
        slopes = along * (TOO_LARGE * weight.T + spread * rng.normal(size=masks.shape))
        sums = [x.sum(0).T.astype(np.float32) for x in (slopes, np.square(slopes), along)]
        kept = (weight * rng.normal(1, 0.7, weight.shape)).astype(np.float32)
        seen = PassSums(plan, np.arange(passes), outputs(masks), which, *sums, kept)
        plan = PassPlan.of_trials(FRACTION, seed=seed)
        own = Trials(plan, np.arange(trials), outputs(drawn(plan, trials)), which)
    few = rng.random((rows, FEATURES)) >= FRACTION
    source = ArrayRows(few, outputs(np.repeat(few[:, None], targets, 1)))
    layers = np.arange(FEATURES) * LAYERS // FEATURES
    return Known(source, np.arange(rows), seen, own, None, layers), weight, unexplained


def correlation(found, weight, unexplained):
    """Mean correlation of predictions with outputs of new trials."""
    each = (found * weight).sum(0) / np.linalg.norm(found, axis=0) / np.linalg.norm(weight, axis=0)
    return float(each.mean() * np.sqrt(1 - unexplained))


def coverage(worlds, *case):
    """Share of the worlds whose interval holds the truth."""
    lines = []
    for number in range(worlds):
        named = (x for x, name in zip(case, CASE, strict=True) if name != "rows" or x != FEW)
        rng = np.random.default_rng([SEED, number, *(round(100 * x) for x in named)])
        known, *truth = world(rng, *case)
        scores = known.told()
        reached = correlation(known.fit().weight, *truth)
        lines.append((scores.mean, scores.mean_low, scores.mean_high, reached))
    told, low, high, truth = np.transpose([line for line in lines if np.isfinite(line[1])])
    return {
        "worlds": worlds,
        "told": len(told) / worlds,
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "too high": float(np.mean(low > truth)),
        "too low": float(np.mean(high < truth)),
        "told less the truth": float(np.mean(told - truth)),
        "width": float(np.mean(high - low)),
        "correlation": float(truth.mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=200)
    args = parser.parse_args()
    reporting.one_thread()
    file = reporting.RESULTS / "coverage_attribute.json"
    lines = json.loads(file.read_text())["results"] if file.is_file() else []
    for size, unexplained in itertools.product(SIZES, UNEXPLAINED):
        case = dict(zip(CASE, (*size, unexplained), strict=True))
        same = [line for line in lines if case.items() <= line.items()]
        if same and same[0]["worlds"] >= args.worlds:
            continue
        lines = [line for line in lines if line not in same]
        lines.append(case | coverage(args.worlds, *case.values()))
        print(lines[-1], flush=True)
        reporting.save("coverage_attribute", lines, "torch")


if __name__ == "__main__":
    main()

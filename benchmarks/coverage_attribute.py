"""How often the interval that `coar attribute` tells holds its correlation, simulated.

    python benchmarks/coverage_attribute.py [--worlds 400]

Results are added to benchmarks/results/coverage_attribute.json; what has as many worlds stays.

A world has true weights, alike among targets, of components that matter differently; gradient
passes whose slopes are the weights with noise, and too large by a tenth; trials, and a few rows,
whose outputs are sums of weights and of what no sum of weights explains. Everything is fitted and
cross-validated as the last step of `coar attribute` does. The truth is that fit's correlation with
the outputs of new trials, exactly, and its mean over targets.
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

FEATURES, LAYERS, ROWS, FRACTION = 60, 6, 4, 0.1
SIZES = (  # targets, gradient passes, trials
    *((20, 16, 24), (20, 16, 80), (20, 32, 48), (20, 64, 96)),
    *((1, 16, 80), (1, 64, 96), (1, 64, 400), (100, 32, 48)),
)
UNEXPLAINED = (0.2, 0.5)
CASE = ("targets", "passes", "trials", "unexplained")
SEED, TOO_LARGE, NOISE_OF_SLOPES = 20_261_128, 1.1, 3.0


def world(rng, targets, passes, trials, unexplained):
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

    seed = int(rng.integers(2**32))
    plan = PassPlan.for_fraction(FRACTION, seed=seed)
    masks = drawn(plan, passes)
    along = on_path(masks)
    spread = NOISE_OF_SLOPES * size
    slopes = along * (TOO_LARGE * weight.T + spread * rng.normal(size=masks.shape))
    sums = [x.sum(0).T.astype(np.float32) for x in (slopes, np.square(slopes), along)]
    kept = weight * rng.normal(1, 0.7, weight.shape)
    which = np.arange(targets)
    seen = PassSums(plan, np.arange(passes), outputs(masks), which, *sums, kept.astype(np.float32))
    plan = PassPlan.of_trials(FRACTION, seed=seed)
    own = Trials(plan, np.arange(trials), outputs(drawn(plan, trials)), which)
    few = rng.random((ROWS, FEATURES)) >= FRACTION
    rows = ArrayRows(few, outputs(np.repeat(few[:, None], targets, 1)))
    layers = np.arange(FEATURES) * LAYERS // FEATURES
    return Known(rows, np.arange(ROWS), seen, own, None, layers), weight, unexplained


def correlation(found, weight, unexplained):
    """Mean correlation of predictions with outputs of new trials."""
    each = (found * weight).sum(0) / np.linalg.norm(found, axis=0) / np.linalg.norm(weight, axis=0)
    return float(each.mean() * np.sqrt(1 - unexplained))


def coverage(worlds, *case):
    """Share of the worlds whose interval holds the truth."""
    lines = []
    for number in range(worlds):
        rng = np.random.default_rng([SEED, number, *(round(100 * x) for x in case)])
        known, *truth = world(rng, *case)
        scores = known.told()
        reached = correlation(known.fit().weight, *truth)
        lines.append((scores.mean, scores.mean_low, scores.mean_high, reached))
    told, low, high, truth = np.transpose(lines)
    return {
        "worlds": worlds,
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "too high": float(np.mean(low > truth)),
        "too low": float(np.mean(high < truth)),
        "told less the truth": float(np.mean(told - truth)),
        "width": float(np.mean(high - low)),
        "correlation": float(truth.mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
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

"""How often the 95% intervals of LDS, differences, ceilings and shares hold the truth, simulated.

    python benchmarks/coverage_comparisons.py [--trials 2000] [--rows 50] [--targets 1,100]

Results are added to benchmarks/results/coverage_comparisons.json; what has as many trials stays.

Random halves of 40 examples are retrained on, two runs each; outputs are sums of true effects, what
no sum of effects explains of a subset, and noise of the run. Two scores, one nearer to the truth
than the other, are judged by `lds` (Spearman's correlation, and Kendall's from one run), compared
by `compare`, and set beside the noise ceiling. True effects and scores are drawn once for a line of
the table. The truth is the mean over its trials; of a ceiling, the mean correlation of the outputs
with what they are without the noise of the runs. Targets share nothing, or 30% of their noise.
"""

import argparse
import itertools
import json

import numpy as np
import reporting

from coarlib.scoring import compare, correlate, lds

ROWS, TARGETS, SHARED = (50, 100, 500), (1, 100, 1000), (0.0, 0.3)
EXAMPLES, RUNS = 40, 2
SIZE = ("rows", "targets", "shared")
SEED = 20_261_127  # no other draws were looked at with it
MANY, HUGE = 10_000, 100_000  # rows × targets from which half, and a fifth, of the trials do


def draw(rng, truth, rows, shared):
    """Masks [M, N], outputs [M, R, T] of true effects [N, T], and these without noise [M, T]."""
    targets = truth.shape[1]
    masks = rng.random((rows, EXAMPLES)).argsort(1) < EXAMPLES // 2
    size = np.sqrt(EXAMPLES) / 2

    def noise(*shape):
        own, common = rng.standard_normal((*shape, targets)), rng.standard_normal((*shape, 1))
        return size * (np.sqrt(1 - shared) * own + np.sqrt(shared) * common)

    expected = masks @ truth + 0.5 * noise(rows)
    return masks, expected[:, None] + noise(rows, RUNS), expected


def trial(near, far, masks, outputs, expected):
    """(low, high, what its mean over trials is the truth of) of every interval."""
    a = lds(near, masks, outputs)
    b = lds(far, masks, outputs, ceiling=a.ceiling)
    difference = compare(a, b)
    reached = correlate(expected, outputs.mean(axis=1)).r.mean()
    found = {
        "LDS": (a.interval, a.mean),
        "difference of two LDS": (difference.interval, difference.difference),
        "noise ceiling": (a.ceiling.interval, reached),
        "LDS as a share of the ceiling": (a.share_interval, a.mean),
    }
    if outputs.shape[2] <= 100:
        kendall = lds(near, masks, outputs[:, 0], "kendall")
        found["LDS, Kendall"] = (kendall.interval, kendall.mean)
    return {name: (one.low, one.high, mean) for name, (one, mean) in found.items()}


def summary(cases):
    """Mean coverage of each interval and size, weighted by trials."""
    sizes = sorted({(case["what"], case["rows"], case["targets"]) for case in cases})
    lines = []
    for size in sizes:
        found = [case for case in cases if (case["what"], case["rows"], case["targets"]) == size]
        covered, trials = ([case[key] for case in found] for key in ("coverage", "trials"))
        line = dict(zip(("what", "rows", "targets"), size, strict=True))
        mean = float(np.average(covered, weights=trials))
        lines.append(line | {"trials": sum(trials), "coverage": mean, "lowest": min(covered)})
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    args = parser.parse_args()
    reporting.one_thread()
    file = reporting.RESULTS / "coverage_comparisons.json"
    cases = json.loads(file.read_text())["results"]["cases"] if file.is_file() else []
    done = {tuple(case[key] for key in SIZE): case["trials"] for case in cases}
    sizes = [[int(n) for n in text.split(",")] for text in (args.targets, args.rows)]
    for targets, rows, shared in itertools.product(*sizes, SHARED):
        size = rows * targets
        trials = args.trials // (1 if size < MANY else 2 if size < HUGE else 5)
        if (targets == 1 and shared) or done.get((rows, targets, shared), 0) >= trials:
            continue
        cases = [case for case in cases if tuple(case[k] for k in SIZE) != (rows, targets, shared)]
        rng = np.random.default_rng([SEED, rows, targets, int(100 * shared)])
        truth = rng.standard_normal((EXAMPLES, targets))
        scores = [truth + spread * rng.standard_normal(truth.shape) for spread in (0.7, 1.0)]
        every = [trial(*scores, *draw(rng, truth, rows, shared)) for _ in range(trials)]
        expected = {name: np.mean([one[name][2] for one in every]) for name in every[0]}
        expected["LDS as a share of the ceiling"] /= expected["noise ceiling"]
        for name, truth_of_it in expected.items():
            low, high, _ = np.array([one[name] for one in every], dtype=float).T
            cases.append({
                "what": name, "rows": rows, "targets": targets, "shared": shared,
                "coverage": float(np.mean((low <= truth_of_it) & (truth_of_it <= high))),
                "too high": float(np.mean(low > truth_of_it)),
                "too low": float(np.mean(high < truth_of_it)),
                "without an interval": float(np.mean(~np.isfinite(high - low))),
                "width": float(np.nanmean(high - low)), "truth": float(truth_of_it),
                "trials": trials,
            })  # fmt: skip
            print(cases[-1], flush=True)
        results = {"table": summary(cases), "cases": cases}
        reporting.save("coverage_comparisons", results, "scipy", "numba")


if __name__ == "__main__":
    main()

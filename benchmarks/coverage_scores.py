"""How often the 95% intervals of scores hold the truth, by simulation.

    python benchmarks/coverage_scores.py [--trials 2000] [--rows 50] [--targets 1,100]

Results are added to benchmarks/results/coverage_scores.json; what has as many trials stays.

Predictions and outputs of M random rows and T targets are drawn with a known relation; the truth is
the expected score over M random rows, the mean over all trials. Outputs share a noise between
targets or not, because targets measured on one model do. With one target, Pearson's correlations
are those of `HeldOut.low` and `high`, where every trial is a target.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
import reporting

from coarlib.regression import score_arrays
from coarlib.statistics.intervals import mean_influence

ROWS, TARGETS = (50, 100, 500), (1, 100, 1000)
STRENGTHS = (0.3, 0.6, 0.9)
SHARED = (0.0, 0.3)  # share of the noise's variance that all targets have in common
NAMES = ("rows", "targets", "kind", "strength", "shared")
SEED = 20_261_127  # no other draws were looked at with it
MANY, HUGE = 50_000, 100_000  # rows × targets from which half, and a fifth, of the trials do


def draw(
    rng: np.random.Generator, rows: int, targets: int, strength: float, shared: float
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and outputs [M, T] with population correlation ``strength``."""
    predicted = rng.standard_normal((rows, targets))
    noise = np.sqrt(1 - shared) * rng.standard_normal((rows, targets))
    noise += np.sqrt(shared) * rng.standard_normal((rows, 1))
    return predicted, strength * predicted + np.sqrt(1 - strength**2) * noise


def coverage(
    rows: int, targets: int, kind: Any, strength: float, shared: float, trials: int
) -> dict[str, float]:
    """Share of the trials whose interval holds the mean score over trials."""
    rng = np.random.default_rng([SEED, rows, targets, int(100 * strength), int(100 * shared)])
    if targets == 1 and kind == "pearson":
        held = score_arrays(*draw(rng, rows, trials, strength, 0.0))
        low, high, means = held.low, held.high, held.pearson
    else:
        found = []
        for _ in range(trials):
            a, b = draw(rng, rows, targets, strength, shared)
            mean = mean_influence(a, b, kind)
            interval = mean.interval()
            found.append((interval.low, interval.high, mean.estimate))
        low, high, means = np.transpose(found)
    truth = means.mean()
    return {
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "too high": float(np.mean(low > truth)),
        "too low": float(np.mean(high < truth)),
        "width": float(np.mean(high - low)),
        "truth": float(truth),
        "trials": trials,
    }


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest coverage of the cases of one size, weighted by trials."""
    sizes = sorted({(case["rows"], case["targets"]) for case in cases})
    lines = []
    for rows, targets in sizes:
        found = [case for case in cases if (case["rows"], case["targets"]) == (rows, targets)]
        covered, trials = zip(*((case["coverage"], case["trials"]) for case in found), strict=True)
        line = {"rows": rows, "targets": targets, "cases": len(found), "trials": sum(trials)}
        line["mean"] = float(np.average(covered, weights=trials))
        lines.append(line | {"lowest": min(covered), "highest": max(covered)})
    return lines


def main() -> None:
    """Simulate every case that the results lack, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--kinds", default="pearson,spearman,kendall")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    args = parser.parse_args()
    reporting.one_thread()
    sizes = [[int(n) for n in text.split(",")] for text in (args.rows, args.targets)]
    file = reporting.RESULTS / "coverage_scores.json"
    cases = json.loads(file.read_text())["results"]["cases"] if file.is_file() else []
    done = {tuple(case[name] for name in NAMES): case["trials"] for case in cases}
    for case in itertools.product(*sizes, args.kinds.split(","), STRENGTHS, SHARED):
        rows, targets, _, _, shared = case
        size = rows * targets
        trials = args.trials // (1 if size < MANY else 2 if size < HUGE else 5)
        if (targets == 1 and shared) or done.get(case, 0) >= trials:
            continue
        cases = [old for old in cases if tuple(old[name] for name in NAMES) != case]
        cases.append(dict(zip(NAMES, case, strict=True)) | coverage(*case, trials))
        print(cases[-1], flush=True)
        results = {"table": summary(cases), "cases": cases}
        reporting.save("coverage_scores", results, "scipy", "numba")


if __name__ == "__main__":
    main()

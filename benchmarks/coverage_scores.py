"""How often the 95% intervals of scores hold the truth, by simulation.

    python benchmarks/coverage_scores.py [--trials 300] [--rows 50] [--targets 1,100]

Results are added to benchmarks/results/coverage_scores.json.

Predictions and outputs of M random rows and T targets are drawn with a known relation; the truth is
the expected score over M random rows, the mean over all trials. Outputs share a noise between
targets or not, because targets measured on one model do. With one target, the limits of
``HeldOut.low`` and ``high`` are counted as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
import reporting

from coarlib.scoring import bootstrap_interval, correlate
from coarlib.statistics.bootstrap import (
    correlation_limits,
    spread_of_subsamples,
    subsamples,
)
from coarlib.statistics.replicates import pearson_replicates

ROWS, TARGETS = (50, 100, 500), (1, 100, 1000)
STRENGTHS = (0.1, 0.5, 0.9)
SHARED = (0.0, 0.3)  # share of the noise's variance that all targets have in common
RESAMPLES = 400
MANY = 100_000  # rows × targets from which fewer resamples and trials have to do
NAMES = ("rows", "targets", "kind", "strength", "shared")


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
    rng = np.random.default_rng([rows, targets, int(100 * strength), int(100 * shared)])
    if targets == 1 and kind == "pearson":  # as HeldOut does it: every trial is a target
        a, b = draw(rng, rows, 10 * trials, strength, 0.0)
        means = correlate(a, b, kind).r
        found = pearson_replicates(a.T, b.T, subsamples(rows, RESAMPLES, 0))
        low, high = correlation_limits(means, spread_of_subsamples(means, found, rows), rows)
    else:
        ends, scores = [], []
        resamples = RESAMPLES if rows * targets < MANY else RESAMPLES // 2
        for trial in range(trials):
            a, b = draw(rng, rows, targets, strength, shared)
            found = bootstrap_interval(a, b, kind, resamples=resamples, seed=trial)
            ends.append((found.low, found.high))
            scores.append(correlate(a, b, kind).r.mean())
        (low, high), means = np.transpose(ends), np.array(scores)
    truth = means.mean()
    return {
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "width": float(np.mean(high - low)),
        "truth": float(truth),
        "trials": len(means),
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
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kinds", default="pearson,spearman")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    args = parser.parse_args()
    sizes = [[int(n) for n in text.split(",")] for text in (args.rows, args.targets)]
    file = reporting.RESULTS / "coverage_scores.json"
    cases = json.loads(file.read_text())["results"]["cases"] if file.is_file() else []
    done = {tuple(case[name] for name in NAMES) for case in cases}
    for case in itertools.product(*sizes, args.kinds.split(","), STRENGTHS, SHARED):
        rows, targets, _, _, shared = case
        if (targets == 1 and shared) or case in done:
            continue
        trials = args.trials if rows * targets < MANY else args.trials // 2
        cases.append(dict(zip(NAMES, case, strict=True)) | coverage(*case, trials))
        print(cases[-1], flush=True)
        results = {"resamples": RESAMPLES, "table": summary(cases), "cases": cases}
        reporting.save("coverage_scores", results, "scipy", "numba")


if __name__ == "__main__":
    main()

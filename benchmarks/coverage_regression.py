"""Coverage of the intervals that a fit gives, by simulation.

    python benchmarks/coverage_regression.py

Weights: ± 1.96 standard errors against the truth, over all weights and over the ten strongest of
each target, for truths that are dense, sparse (5% of a target's weights) or shared (log-normal
strengths of components, the same for all targets), more and fewer rows than features, noise of one
size and noise that grows with the number of ablated components. Where a solver gives no errors,
none is shown. Learning curves: how often the correlation at twice the rows, on 2,000 fresh rows,
lies in the interval predicted from the first half and 200 held-out rows.
"""

import argparse
import itertools

import numpy as np
import reporting

from coarlib.regression import ArrayRows, LeastSquares, Ridge, SharedPrior, TemperedPrior
from coarlib.regression.learning_curve import learning_curve
from coarlib.regression.moments import Moments
from coarlib.regression.problems import problem_of, solve

KEEP, TOP, TARGETS, Z, FRESH = 0.9, 10, 30, 1.96, 2000
TRUTHS = ("dense", "sparse", "shared")
SIZES = ((120, 400), (250, 200), (300, 100), (1000, 100))
CURVES = ((240, 200), (400, 60))
SOLVERS = {
    "least squares, robust": LeastSquares(errors="robust"),
    "least squares, equal variances": LeastSquares(errors="classical"),
    "ridge": Ridge(),
    "shared prior": SharedPrior(),
    "tempered prior": TemperedPrior(),
}


def truth(kind, features, targets, rng):
    """Weights whose predictions have variance 1."""
    weight = rng.standard_normal((features, targets))
    if kind == "sparse":
        weight *= rng.random(weight.shape).argsort(0).argsort(0) < max(5, features // 20)
    if kind == "shared":
        weight *= np.exp(1.2 * rng.standard_normal((features, 1)))
    return weight / np.sqrt((weight**2).sum(0) * KEEP * (1 - KEEP))


def draw(kind, rows, features, noise, rng, targets=TARGETS):
    """Weights, and rows of them with as much noise as signal."""
    weight = truth(kind, features, targets, rng)
    masks = rng.random((rows, features)) < KEEP
    size = np.ones(rows)
    if noise == "unequal":
        ablated = (~masks).sum(1)
        size = ablated / ablated.mean()
    outputs = masks @ weight + size[:, None] * rng.standard_normal((rows, targets))
    return weight, ArrayRows(masks, outputs)


def weights_covered(solver, kind, size, noise, repeats):
    """A line of the table: how often intervals hold the truth."""
    every, strongest = [], []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        weight, source = draw(kind, *size, noise, rng)
        moments = Moments.from_rows(source)
        found = solve(solver, problem_of(moments, (source, np.arange(size[0]))))
        if found.standard_error is None:
            return None
        low, high = found.interval(Z)
        hit = (low <= weight) & (weight <= high)
        top = np.argsort(-np.abs(weight), axis=0)[:TOP]
        every.append(hit.mean())
        strongest.append(np.take_along_axis(hit, top, 0).mean())
    return {"all": round(float(np.mean(every)), 3), "top ten": round(float(np.mean(strongest)), 3)}


def curves_covered(solver, kind, size, repeats):
    """How often twice the rows bring what was predicted, and how wide the prediction is."""
    rows, features = size
    hits, widths = [], []
    for seed in range(repeats):
        rng = np.random.default_rng(1000 + seed)
        _, source = draw(kind, 2 * rows + 200 + FRESH, features, "equal", rng, targets=10)
        held, fresh = np.split(np.arange(2 * rows, 2 * rows + 200 + FRESH), [200])
        curve = learning_curve(source, np.arange(rows), held, solver=solver)
        whole = learning_curve(source, np.arange(2 * rows), fresh, solver=solver, points=1)
        if len(curve.wanted):
            hits.append(curve.low_ahead[0] <= whole.correlation[-1] <= curve.high_ahead[0])
            widths.append(curve.high_ahead[0] - curve.low_ahead[0])
    if not hits:
        return None
    return {
        "covered": round(float(np.mean(hits)), 3),
        "mean width": round(float(np.mean(widths)), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4, help="fits of 30 targets a line")
    parser.add_argument("--curves", type=int, default=20, help="curves a line")
    args = parser.parse_args()
    weights, curves = [], []
    for noise, kind, size in itertools.product(("equal", "unequal"), TRUTHS, SIZES):
        for name, solver in SOLVERS.items():
            found = weights_covered(solver, kind, size, noise, args.repeats)
            line = {"solver": name, "truth": kind, "noise": noise, "rows": size[0]}
            line |= {"features": size[1], **(found or {"all": None, "top ten": None})}
            weights.append(line)
        print(weights[-1], flush=True)
    solvers = {"least squares": LeastSquares(errors="classical")} | SOLVERS
    names = ("least squares", "ridge", "shared prior")
    for name, kind, size in itertools.product(names, ("dense", "sparse"), CURVES):
        found = curves_covered(solvers[name], kind, size, args.curves)
        line = {"solver": name, "truth": kind, "rows": size[0], "features": size[1]}
        curves.append(line | (found or {"covered": None, "mean width": None}))
        print(curves[-1], flush=True)
    reporting.table("weights", weights)
    reporting.save("coverage_regression", {"weights": weights, "learning curves": curves}, "torch")


if __name__ == "__main__":
    main()

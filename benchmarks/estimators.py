"""Which estimator needs how many rows for a given held-out correlation.

    python benchmarks/estimators.py                      # synthetic truths
    python benchmarks/estimators.py --most 500           # the same with few rows, only printed
    python benchmarks/estimators.py --real               # rows of a real network (resnet20_rows.py)
    python benchmarks/estimators.py --store STORE [--scores SCORES]      # yours, only printed

Every estimator sees the same N rows, what chooses λ (or the estimator: `auto`) included: lasso and
auto put a fifth of the N aside for that and fit all N afterwards, as run_regression does. Scores
are mean Pearson correlations on held-out rows nobody fitted. Synthetic truths have COAR's size,
2,304 components kept with probability .95, and noise that caps the correlation at .775:

shared   log-normal strengths of components, the same for all targets (a few matter to everyone)
dense    every component matters equally
sparse   each target has its own 2% of components
"""

import argparse
import time
from pathlib import Path

import numpy as np
import reporting
import resnet20_rows

from coarlib.regression import (
    SOLVERS,
    ArrayRows,
    Auto,
    InformedPrior,
    Lasso,
    Ridge,
    SharedPrior,
    TemperedPrior,
    open_rows,
    score_rows,
)
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.solvers.prior import load_prior_scores
from coarlib.regression.split import split_rows

CEILING, KEEP = 0.775, 0.95
WHOLE = 10_000
NAMES = ("least_squares", "ridge", "shared_prior", "tempered_prior", "lasso")
LASSO = Lasso(num_lambdas=60)
QUIET = FitOptions(quiet=True, with_curve=False, say=lambda line: None)


def synthetic(kind, rows, features=2304, targets=100, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((features, targets))
    if kind == "shared":
        weight *= np.exp(1.2 * rng.standard_normal((features, 1)))
    if kind == "sparse":
        weight *= rng.random(weight.shape) < 0.02
    weight /= np.sqrt((weight**2).sum(0) * KEEP * (1 - KEEP))
    masks = rng.random((rows, features)) < KEEP
    noise = np.sqrt(1 / CEILING**2 - 1) * rng.standard_normal((rows, targets))
    return ArrayRows(masks, masks @ weight + noise)


def measure(source, counts, held, scores=None):
    """The table's lines: every solver fits the first rows, as run_regression would."""
    prior = {} if scores is None else {"informed_prior": InformedPrior(**scores)}
    solvers = {name: SOLVERS[name]() for name in NAMES} | {"lasso": LASSO} | prior
    candidates = (Ridge(), SharedPrior(), TemperedPrior(), LASSO, *prior.values())
    solvers["auto"] = Auto(candidates=candidates)
    table = []
    for count in counts:
        line, started = {"rows": int(count)}, time.perf_counter()
        inner = max(20, count // 5)
        split = split_rows(source, count - inner, inner)
        for name, solver in solvers.items():
            fitted = fit_and_score(source, split, solver, QUIET)
            score = score_rows(fitted.predict, source, held)
            line[name] = round(score.mean, 4)
            if name == "ridge":
                half = (score.mean_high - score.mean_low) / 2
        line |= {"± (95%)": round(half, 4), "auto chose": fitted.summary["solver"]}
        print(line, f"{time.perf_counter() - started:.0f} s", flush=True)
        table.append(line)
    return table


def rows_needed(table, name, wanted):
    """Rows at which an estimator reaches a correlation, interpolated in log rows; None if never."""
    counts = np.log([line["rows"] for line in table])
    scores = np.maximum.accumulate([line[name] for line in table])
    if scores[-1] < wanted:
        return None
    above = int(np.argmax(scores >= wanted))
    if above == 0:
        return int(np.exp(counts[0]))
    share = (wanted - scores[above - 1]) / (scores[above] - scores[above - 1])
    return int(np.exp(counts[above - 1] + share * (counts[above] - counts[above - 1])))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--scores", type=Path, help="of coar gradient_scores, for informed_prior")
    parser.add_argument("--held_out", type=int, default=500)
    parser.add_argument("--targets", type=int, help="use the first so many targets of the store")
    parser.add_argument("--most", type=int, default=WHOLE, help="rows of the synthetic truths")
    args = parser.parse_args()
    if args.real:
        if (made := resnet20_rows.make(args.store or resnet20_rows.OUT)) is None:
            return
        results = real(*made, args.held_out, args.targets)
        reporting.save("estimators_688_features", results, "torch", "numba", options=["--real"])
    elif args.store:
        real(args.store, args.scores, args.held_out, args.targets)
    else:
        results = {}
        counts = [n for n in (139, 500, 2304, WHOLE) if n <= args.most]
        for kind in ("shared", "dense", "sparse"):
            source = synthetic(kind, counts[-1] + 2000)
            held = np.arange(counts[-1], counts[-1] + 2000)
            results[kind] = measure(source, counts, held)
            reporting.table(kind, results[kind])
        if args.most >= WHOLE:
            reporting.save("estimators_synthetic", results, "torch", "numba")


def real(store, scores, held_out, targets):
    """The table of a store: its last rows are held out."""
    source = open_rows(store, targets=slice(targets))
    total = len(source.row_ids) - held_out
    counts = [n for n in (100, 200, 350, 700, 1000, 1500, 2000) if n < total] + [total]
    guesses = load_prior_scores(scores, slice(targets)) if scores else None
    table = measure(source, counts, np.arange(total, total + held_out), guesses)
    wanted = table[-1]["least_squares"]
    names = (*NAMES, *(("informed_prior",) if guesses else ()), "auto")
    needed = {name: rows_needed(table, name, wanted) for name in names}
    print(needed)
    return {
        "features": source.num_features,
        "targets": source.num_targets,
        "table": table,
        "rows to reach least squares' last correlation": needed,
    }


if __name__ == "__main__":
    main()

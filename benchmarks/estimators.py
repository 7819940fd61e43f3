"""Which estimator needs how many rows for a given held-out correlation.

    python benchmarks/estimators.py                      # synthetic truths
    python benchmarks/estimators.py --store STORE [--scores SCORES]      # real rows

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

from coarlib.regression import ArrayRows, Moments, Problem, fit, open_rows, score_rows
from coarlib.regression.dual import DualProblem, finite_masks
from coarlib.regression.solvers.prior import learn_prior, load_scores

CEILING, KEEP = 0.775, 0.95
SOLVERS = ("least_squares", "ridge", "shared_prior", "tempered_prior", "lasso")
CANDIDATES = ("ridge", "shared_prior", "tempered_prior", "lasso")
LASSO = {"num_lambdas": 60, "eps": 1e-2}


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


class Rows:
    """The first N rows, split into four fifths and one, and all of them."""

    def __init__(self, source, count, scores):
        cut = count - max(20, count // 5)
        self.source, self.inner, self.scores = source, np.arange(cut, count), scores
        self.choosing = Moments.from_rows(source, self.inner)
        fitting = Moments.from_rows(source, np.arange(cut))
        self.moments = {cut: fitting, count: fitting + self.choosing}
        self.cut, self.count, self.priors = cut, count, {}

    def fit(self, count, solver, **options):
        """Fit the first ``count`` rows, in the dual form where that is much smaller."""
        moments = self.moments[count]
        dual = solver != "lasso" and 2 * count < moments.num_features
        masks = finite_masks(self.source, np.arange(count)) if dual else None
        if solver == "informed_prior":
            options |= self.scores
        if solver in ("shared_prior", "tempered_prior"):  # the same prior, learnt once
            if count not in self.priors:
                problem = DualProblem.from_masks(moments, masks) if dual else None
                problem = problem or Problem.from_moments(moments)
                self.priors[count] = np.zeros(moments.num_features)
                self.priors[count][problem.active] = learn_prior(problem).variance
            options["prior"] = self.priors[count]
        return fit(moments, solver, masks=masks, **options)

    def final(self, solver, inner=None):
        if solver != "lasso":
            return self.fit(self.count, solver)
        inner = inner or self.fit(self.cut, "lasso", validation=self.choosing, **LASSO)
        return self.fit(self.count, solver, lam=inner.lam, start=inner.weight)

    def auto(self):
        """As run_regression: λ of the lasso from half of the rows aside, judged on the others."""
        half = len(self.inner) // 2
        choosing = Moments.from_rows(self.source, self.inner[:half])
        judging, scores, inner = self.inner[half:], {}, {}
        for solver in (*CANDIDATES, *(("informed_prior",) if self.scores else ())):
            options = {"validation": choosing, **LASSO} if solver == "lasso" else {}
            inner[solver] = self.fit(self.cut, solver, **options)
            scores[solver] = score_rows(inner[solver].predict, self.source, judging).mean
        best = max(scores, key=scores.get)
        return best, self.final(best, inner[best])


def measure(source, counts, held, scores=None):
    table, solvers = [], (*SOLVERS, *(("informed_prior",) if scores else ()))
    for count in counts:
        rows, line, chosen = Rows(source, count, scores), {"rows": int(count)}, ""
        started = time.perf_counter()
        finals = {solver: rows.final(solver) for solver in solvers}
        chosen, finals["auto"] = rows.auto()
        for name, fitted in finals.items():
            score = score_rows(fitted.predict, source, held)
            line[name] = round(score.mean, 4)
            if name == "ridge":
                half = (score.mean_high - score.mean_low) / 2
        line |= {"± (95%)": round(half, 4), "auto chose": chosen}
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
    parser.add_argument("--store", type=Path)
    parser.add_argument("--scores", type=Path, help="of coar gradient_scores, for informed_prior")
    parser.add_argument("--held_out", type=int, default=500)
    parser.add_argument("--targets", type=int, help="use the first so many targets of the store")
    parser.add_argument("--most", type=int, default=10_000, help="rows of the synthetic truths")
    args = parser.parse_args()
    if args.store:
        source = open_rows(args.store, targets=slice(args.targets))
        total = len(source.row_ids) - args.held_out
        features = source.num_features
        counts = [n for n in (100, 200, 350, 700, 1000, 1500, 2000) if n < total] + [total]
        scores = load_scores(args.scores, slice(args.targets)) if args.scores else None
        table = measure(source, counts, np.arange(total, total + args.held_out), scores)
        results = {"features": features, "targets": source.num_targets, "table": table}
        wanted = table[-1]["least_squares"]
        results["rows to reach least squares' last correlation"] = {
            name: rows_needed(table, name, wanted)
            for name in (*SOLVERS, *(("informed_prior",) if scores else ()), "auto")
        }
        print(results["rows to reach least squares' last correlation"])
        name = f"estimators_{features}_features"
    else:
        results, name = {}, "estimators_synthetic"
        counts = [n for n in (139, 500, 2304, 10_000) if n <= args.most]
        for kind in ("shared", "dense", "sparse"):
            source = synthetic(kind, counts[-1] + 2000)
            held = np.arange(counts[-1], counts[-1] + 2000)
            results[kind] = measure(source, counts, held)
            reporting.table(kind, results[kind])
    reporting.save(name, results, "torch", "numba")


if __name__ == "__main__":
    main()

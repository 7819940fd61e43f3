"""Certificates against the truth: what a solver says it is off by, and what it is off by.

    python benchmarks/certificates.py [--problems 1000]

Random small problems of every kind (more and fewer rows than features, independent masks and masks
of a fixed size, features that move together, R² from .05 to .9999, outputs from 1e-9 to 1e9, λ down
to 1e-4, tolerances from 1e-2 to 1e-8, cold and warm starts, near and far) are solved by every
solver that certifies its answer. The true excess is that of the saved float32 weights over the best
objective that numpy (quadratic problems) or scikit-learn and this project at its tightest (lasso)
find in float64, relative to half the variance of the target, as certificates are.
"""

import argparse
import warnings
from dataclasses import dataclass, replace

import numpy as np
import reporting
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet

from coarlib.regression import (
    ArrayRows,
    ConjugateGradients,
    Lasso,
    LeastSquares,
    Moments,
    Problem,
    Ridge,
    Saga,
    SharedPrior,
)
from coarlib.regression.dual import DualProblem
from coarlib.regression.stream import StreamProblem

TARGETS = 2
TINY = 1e-10  # what float64 sums of these sizes may add to an excess


@dataclass
class Case:
    """One random problem, and its objective in float64."""

    masks: np.ndarray
    outputs: np.ndarray
    lam: float
    tol: float
    warm: bool
    seed: int

    @classmethod
    def draw(cls, seed, tall=None):
        """A random problem; ``tall`` asks for more rows than features, or fewer."""
        rng = np.random.default_rng(seed)
        features = int(rng.integers(2, 50))
        tall = rng.random() < 0.7 if tall is None else tall
        rows = int(features * rng.uniform(1.3, 8) if tall else features * rng.uniform(0.3, 1)) + 4
        keep = rng.choice([0.1, 0.5, 0.8, 0.95])
        if rng.random() < 0.3:  # every mask keeps the same number
            count = int(np.clip(round(keep * features), 1, features - 1))
            masks = rng.random((rows, features)).argsort(1) < count
        else:
            masks = rng.random((rows, features)) < keep
        if features > 3 and rng.random() < 0.3:
            masks[:, 1] = masks[:, 0]
        r2 = rng.choice([0.05, 0.5, 0.9, 0.99, 0.9999])
        signal = masks @ (rng.normal(size=(features, TARGETS)) * rng.choice([1, 100]))
        spread = signal.std(0) + (signal.std(0) == 0)
        noise = np.sqrt(1 / r2 - 1) * rng.normal(size=(rows, TARGETS))
        outputs = signal + spread * noise + rng.choice([0, 30])
        outputs = outputs.astype(rng.choice([np.float32, np.float64]))
        lam = float(10 ** rng.uniform(-4, 0)) * float(rng.choice([1, outputs.std()]))
        tol = float(10 ** rng.uniform(-8, -2))
        warm = rng.random() < 0.4
        scale = float(10.0 ** rng.choice([0, 0, -9, 9]))
        outputs *= outputs.dtype.type(scale)
        return cls(masks, outputs, lam * scale, tol, warm, seed)

    @property
    def moments(self):
        return Moments.from_arrays(self.masks, self.outputs)

    @property
    def problem(self):
        return Problem.from_moments(self.moments)

    @property
    def stream(self):
        source = ArrayRows(self.masks, self.outputs)
        return StreamProblem.from_source(self.moments, source, np.arange(len(self.masks)))

    @property
    def dual(self):
        return DualProblem.from_masks(self.moments, self.masks)

    def standardised(self):
        x = self.masks.astype(float)
        scale = x.std(0)
        varying = scale > 0
        z = (x - x.mean(0))[:, varying] / scale[varying]
        y = self.outputs.astype(float)
        return z, y - y.mean(0), scale, varying

    def excesses(self, solution, optimum, l1=0.0, l2=0.0):
        """How far the objective of each target's saved weights is above its optimum, [T]."""
        z, y, scale, varying = self.standardised()
        w = (solution.weight.astype(float) * scale[:, None])[varying]

        def objective(w, t, l1, l2):
            left = y[:, t] - z @ w
            return left @ left / (2 * len(z)) + (l1 * np.abs(w) + l2 * w**2 / 2).sum()

        found = []
        for t in range(TARGETS):
            lams = [np.broadcast_to(lam, (len(scale), TARGETS))[varying, t] for lam in (l1, l2)]
            best = min(objective(o, t, *lams) for o in optimum(z, y[:, t], *lams, t))
            size = 0.5 * y[:, t].var() or 1.0
            found.append((objective(w[:, t], t, *lams) - best) / size)
        return np.array(found)


def quadratic(z, y, l1, l2, t):
    """The optimum of ridge or least squares, by numpy's singular values."""
    n = len(z)
    extended = np.vstack([z, np.diag(np.sqrt(n * l2))])
    return [np.linalg.lstsq(extended, np.r_[y, np.zeros(len(l2))], rcond=1e-14)[0]]


def sparse(tight, positive):
    """The optimum of the lasso: the best of scikit-learn's and ``tight``, our own at 1e-13."""

    def optimum(z, y, l1, l2, t):
        if not len(l1):  # nothing varies
            return [l1]
        alpha = float(l1[0] + l2[0])
        model = ElasticNet(
            alpha=alpha, l1_ratio=float(l1[0]) / alpha, positive=positive, tol=1e-13,
            max_iter=20_000, fit_intercept=False, precompute=True,
        )  # fmt: skip
        return [model.fit(z, y).coef_, tight[:, t]]

    return optimum


def lasso(case, l1_ratio=1.0, positive=False, path=False):
    problem = case.problem
    options = {"l1_ratio": l1_ratio, "positive": positive}
    start = None
    if case.warm:
        rng = np.random.default_rng(case.seed)
        start = rng.normal(size=(len(case.masks[0]), TARGETS)) * 10 ** rng.uniform(-9, 9)
        start = np.abs(start) if positive else start
    if path:
        rows = np.random.default_rng(case.seed).integers(0, len(case.masks), 12)
        held = Moments.from_arrays(case.masks[rows], case.outputs[rows])
        solver = Lasso(tol=case.tol, num_lambdas=12, eps=1e-3, **options)
        ours = solver.solve(replace(problem, validation=held))
    else:
        ours = Lasso(case.lam, tol=case.tol, start=start, **options).solve(problem)
    fixed = {"l1_ratio": l1_ratio, "positive": positive}
    tight = Lasso(ours.lam, tol=1e-13, **fixed).solve(problem)
    z_tight = tight.weight[problem.active] * problem.scale[:, None]
    optimum = sparse(z_tight, positive)
    return ours, case.excesses(ours, optimum, l1_ratio * ours.lam, (1 - l1_ratio) * ours.lam)


def ridge(case, solution):
    return solution, case.excesses(solution, quadratic, l2=solution.lam)


def shared_prior(case):
    prior = np.random.default_rng(case.seed).uniform(0.01, 3, case.masks.shape[1])
    problem = case.problem
    found = SharedPrior(prior=prior).solve(problem)
    tau = prior / prior[problem.active].mean()
    return found, case.excesses(found, quadratic, l2=found.lam / tau[:, None])


def saga(case):
    found = Saga(case.lam, tol=case.tol, batch_size=32, max_epochs=40).solve(case.stream)
    problem = case.problem
    tight = Lasso(found.lam, tol=1e-13).solve(problem)
    z_tight = tight.weight[problem.active] * problem.scale[:, None]
    return found, case.excesses(found, sparse(z_tight, False), l1=found.lam)


SOLVERS = {
    "least squares, n > N": lambda s: ridge(
        c := Case.draw(s, True), LeastSquares().solve(c.problem)
    ),
    "least squares, n ≤ N": lambda s: ridge(
        c := Case.draw(s, False), LeastSquares().solve(c.problem)
    ),
    "least squares, dual": lambda s: ridge(c := Case.draw(s, False), LeastSquares().solve(c.dual)),
    "ridge at λ": lambda s: ridge(c := Case.draw(s), Ridge(c.lam).solve(c.problem)),
    "ridge, λ by GCV": lambda s: ridge(c := Case.draw(s), Ridge().solve(c.problem)),
    "ridge, dual": lambda s: ridge(c := Case.draw(s, False), Ridge().solve(c.dual)),
    "shared prior": lambda s: shared_prior(Case.draw(s)),
    "conjugate gradients": lambda s: ridge(
        c := Case.draw(s), ConjugateGradients(c.lam, max_steps=30).solve(c.stream)
    ),
    "lasso at λ": lambda s: lasso(Case.draw(s)),
    "lasso path": lambda s: lasso(Case.draw(s), path=True),
    "elastic net": lambda s: lasso(Case.draw(s), l1_ratio=0.5),
    "lasso, weights ≥ 0": lambda s: lasso(Case.draw(s), positive=True),
    "saga": lambda s: saga(Case.draw(s)),
}


def measure(solve, problems):
    """The table's line of one solver."""
    gaps, excesses = [], []
    for seed in range(problems):
        solution, excess = solve(seed)
        gaps.append(solution.gap)
        excesses.append(excess)
    gap, excess = np.concatenate(gaps), np.concatenate(excesses)
    over = excess - gap
    return {
        "problems": problems,
        "targets": len(gap),
        "least certificate": float(gap.min()),
        "median certificate": float(np.median(gap)),
        "median excess": float(np.median(np.maximum(excess, 0))),
        "largest certificate": float(gap.max()),
        "largest excess": float(excess.max()),
        "largest excess over certificate": float(over.max()),
        "violations": int((over > TINY).sum()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--only", help="a solver of the table; nothing is saved then")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    table = {}
    for name, solve in SOLVERS.items():
        if args.only in (None, name):
            table[name] = measure(solve, args.problems)
            print(name, table[name], flush=True)
    if args.only is None:
        reporting.save("certificates", table, "numpy", "scikit-learn", "torch", "numba")


if __name__ == "__main__":
    main()

"""Least squares at COAR's CIFAR size: fast_l1's algorithm against coarlib, to 1e-6 of the optimum.

    python benchmarks/regression_fast_l1.py [--store STORE]

fast_l1 needs CUDA and cupy. Its iteration (SAGA on standardised masks with a table of residuals,
batches of 2,500) is written here with torch operations in preallocated buffers, so that both run
on this CPU. Epochs are counted on a few of the 10,000 targets (they do not depend on how many
there are) until the objective is within 1e-6 of the exact optimum, relative to half the variance,
at the published learning rate (1e-3) and at the best of a grid; the cost of an epoch is measured
on batches of all 10,000. coarlib's time is the whole way from disk to weights. All times are CPU
seconds, so that other work on the machine does not enter.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting
import torch
from regression_least_squares import make_store

from coarlib.regression import Moments, Problem, fit_least_squares, open_rows

RATES = (1e-3, 1e-2, 3e-2, 5e-2, 1e-1)
PUBLISHED = 1e-3
BATCH = 2500
WANTED = 1e-6
MOST_EPOCHS = 600
FEATURES, TARGETS, ROWS = 2304, 10_000, 45_000


class Saga:
    """One step of fast_l1's loop; buffers are allocated once."""

    def __init__(self, features, targets, rows, rate):
        def zeros(*shape):
            return torch.zeros(*shape)

        self.weight, self.bias = zeros(features, targets), zeros(targets)
        self.slope, self.level = zeros(features, targets), zeros(targets)
        self.table = zeros(rows, targets)
        self.residual, self.step = zeros(BATCH, targets), zeros(features, targets)
        self.rows, self.rate = rows, rate

    def batch(self, x, y, index):
        torch.addmm(y - self.bias, x, self.weight, out=self.residual, beta=-1)
        old = self.table[index]
        self.residual -= old
        torch.mm(x.T, self.residual, out=self.step)
        self.step /= BATCH
        self.step += self.slope
        level = self.residual.sum(0) / BATCH + self.level
        self.weight.add_(self.step, alpha=-self.rate)
        self.bias.add_(level, alpha=-self.rate)
        self.residual += old
        self.table[index] = self.residual
        share = BATCH / self.rows
        self.slope.mul_(1 - share).add_(self.step, alpha=share)
        self.level.mul_(1 - share).add_(level, alpha=share)


def excess(problem, weight, optimum, variance):
    """(objective - optimum) / (½ variance), largest over targets; the bias is taken at its best."""
    d = weight.double() - optimum
    return float(((d * (problem.gram @ d)).sum(0) / variance).max())


def epochs_needed(x, y, problem, optimum, variance, rate):
    run = Saga(x.shape[1], y.shape[1], len(x), rate)
    generator = torch.Generator().manual_seed(0)
    left, epoch, curve = float("inf"), 0, []
    while epoch < MOST_EPOCHS:
        epoch += 1
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            run.batch(x[index], y[index], index)
        left = excess(problem, run.weight, optimum, variance)
        curve.append(left)
        if left <= WANTED or not np.isfinite(left) or left > 1e6:
            break
    reached = left <= WANTED
    print(f"lr {rate:g}: {epoch} epochs, excess {left:.2g}", flush=True)
    return epoch if reached else None, curve


def seconds_an_epoch(rows):
    """Cost of an epoch over all targets, from a few batches."""
    run = Saga(FEATURES, TARGETS, 2 * BATCH, PUBLISHED)
    x, y = torch.randn(BATCH, FEATURES), torch.randn(BATCH, TARGETS)
    best = float("inf")
    for turn in range(3):
        index = torch.arange(BATCH) + BATCH * (turn % 2)
        started = time.process_time()
        run.batch(x, y, index)
        best = min(best, time.process_time() - started)
    return best * rows / BATCH


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep (or find) the store here")
    parser.add_argument("--targets", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or Path(folder) / "store"
        if not (store / "_completed.npy").is_file():
            make_store(store, 50_000, FEATURES, TARGETS)
        run(store, args.targets)


def run(store, targets):
    train = np.arange(ROWS)
    few = open_rows(store, targets=slice(0, targets))
    moments = Moments.from_rows(few, train)
    problem = Problem.from_moments(moments)
    masks, outputs = few.read(train)
    x = torch.from_numpy(masks).float()
    x -= torch.from_numpy(problem.mean).float()
    x /= torch.from_numpy(problem.scale).float()
    y = torch.from_numpy(outputs.astype(np.float32))
    optimum = torch.linalg.solve(problem.gram, problem.covariance())
    variance = torch.from_numpy(problem.variance)
    per_epoch = seconds_an_epoch(ROWS)
    rows, curves = [], {}
    for rate in RATES:
        epochs, curve = epochs_needed(x, y, problem, optimum, variance, rate)
        rows.append({"learning rate": rate, "epochs to 1e-6": epochs, "excess reached": curve[-1],
                     "CPU seconds": None if epochs is None else epochs * per_epoch})  # fmt: skip
        thinned = sorted({*np.geomspace(1, len(curve), 40).astype(int).tolist()})
        curves[str(rate)] = {"CPU seconds": [n * per_epoch for n in thinned],
                             "excess": [curve[n - 1] for n in thinned]}  # fmt: skip
    started = time.process_time()
    fitted = fit_least_squares(Moments.from_rows(open_rows(store), train))
    ours = time.process_time() - started
    for row in rows:
        row["times coarlib"] = None if row["CPU seconds"] is None else row["CPU seconds"] / ours
    rows.append({"learning rate": "coarlib (exact)", "epochs to 1e-6": 1,
                 "excess reached": float(fitted.gap.max()), "CPU seconds": ours,
                 "times coarlib": 1.0})  # fmt: skip
    title = f"fast_l1's SAGA (torch, CPU), N={ROWS}, M={FEATURES}, T={TARGETS}, batch {BATCH}"
    reporting.table(title, rows)
    results = {"problem": title, "CPU seconds an epoch, all targets": per_epoch,
               "runs": rows, "curves": curves}  # fmt: skip
    reporting.save("regression_fast_l1", results, "torch", "numba")


if __name__ == "__main__":
    main()

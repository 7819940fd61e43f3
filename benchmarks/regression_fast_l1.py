"""fast_l1's algorithm against coarlib: least squares and lasso with validation stop.

    python benchmarks/regression_fast_l1.py [--part PART] [--store STORE]

PART is least_squares, lasso_cifar_size, lasso_sparse or all (the default), a few minutes each; the
results of parts that are not run stay.

fast_l1 needs CUDA and cupy. Its algorithm is written with torch operations in `fast_l1_saga`, so
that both run on this CPU. Its epochs are counted on a few targets (they do not depend on how many
there are); the cost of an epoch is measured on batches of all targets, and so is the cost of a look
at the validation rows. epochs x cost is its time: reading, standardising and copying batches are
not charged to it. All times are CPU seconds, so that other work on the machine does not enter.

Least squares, COAR's CIFAR size: epochs until the objective is within 1e-6 of the exact optimum,
relative to half the variance, at the published learning rate (1e-3) and at the best of a grid.
coarlib's time is the whole way from disk to weights.

Lasso, CIFAR size and N=5,000 M=2,000: fast_l1's path of 100 λ from its own largest to 1e-2 of it,
until its own validation stop, at the published settings (learning rate 1e-3, tolerance 1e-10, a
look every 3 epochs, batches of 2,500), at other learning rates, and at the cheapest of a grid over
learning rates, tolerances, looks and batches that comes within 1% of coarlib's validation error.
The thousands of epochs of the published tolerance are counted with batches for a while and then
with the mean of the iteration (fewer epochs if anything: 15-20% where both were counted to the
end); a run that is not finished even then gives a lower bound. coarlib's path ends at the same
smallest λ, or at its own stop; the kept λ is certified to a gap of 1e-6, others to 1e-4. Its
moments (CIFAR size: from disk) are measured for all targets, its path on 256 of them and scaled.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import reporting
import torch
from fast_l1_saga import Saga, Settings, Task, largest_lambda
from regression_lasso import problem as sparse_problem
from regression_least_squares import make_store

from coarlib.compiled import compiling_everything
from coarlib.regression import Lasso, Moments, Problem, fit, open_rows

NAME = "regression_fast_l1"
PARTS = ("least_squares", "lasso_cifar_size", "lasso_sparse")
RATES = (1e-3, 1e-2, 3e-2, 5e-2, 1e-1)
PUBLISHED = Settings(rate=1e-3, stop=1e-10, check=3)
BATCH = 2500
WANTED = 1e-6
MOST_EPOCHS = 600
FEATURES, TARGETS, ROWS = 2304, 10_000, 45_000
NUM_LAMBDAS, EPS = 100, 1e-2
STOPS, CHECKS = (1e-7, 1e-6, 1e-5, 1e-4), (1, 3)
PATH_TARGETS, COUNTED = 256, 3  # targets of coarlib's path, and of fast_l1's
BY_BATCHES, DRIFT_EPOCHS = 40, 20  # epochs before the mean iteration goes on; epochs compared
NEAR = 1.01  # validation error over coarlib's that counts as reached


def excess(problem, weight, optimum, variance):
    """(objective - optimum) / (½ variance), largest over targets; the bias is taken at its best."""
    d = weight.double() - optimum
    return float(((d * (problem.gram @ d)).sum(0) / variance).max())


def epochs_needed(x, y, problem, optimum, variance, rate):
    run = Saga(x.shape[1], y.shape[1], len(x), rate, BATCH)
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


def seconds_an_epoch(rows, features, targets, batch, held=0):
    """Cost over all targets, from a few batches: of an epoch, and of a look at ``held`` rows.

    Steps threshold where there are held-out rows to look at.
    """
    run = Saga(features, targets, 2 * batch, PUBLISHED.rate, batch)
    x, y = torch.randn(batch, features), torch.randn(batch, targets)
    lam = torch.ones(targets) if held else None
    step = look = float("inf")
    for turn in range(3):
        index = torch.arange(batch) + batch * (turn % 2)
        started = time.process_time()
        run.batch(x, y, index, lam)
        middle = time.process_time()
        if held:
            run.error(x, y)
        step, look = min(step, middle - started), min(look, time.process_time() - middle)
    return step * rows / batch, look * held / batch


def least_squares(store, targets):
    """Epochs to the optimum at each rate, and coarlib's time from disk to weights."""
    train = np.arange(ROWS)
    few = open_rows(store, targets=slice(0, targets))
    problem = Problem.from_moments(Moments.from_rows(few, train))
    masks, outputs = few.read(train)
    x, y = standardised(masks, problem), torch.from_numpy(outputs.astype(np.float32))
    optimum = torch.linalg.solve(problem.gram, problem.covariance())
    variance = torch.from_numpy(problem.variance)
    per_epoch, _ = seconds_an_epoch(ROWS, FEATURES, TARGETS, BATCH)
    rows, curves = [], {}
    for rate in RATES:
        epochs, curve = epochs_needed(x, y, problem, optimum, variance, rate)
        rows.append({"learning rate": rate, "epochs to 1e-6": epochs, "excess reached": curve[-1],
                     "CPU seconds": None if epochs is None else epochs * per_epoch})  # fmt: skip
        thinned = sorted({*np.geomspace(1, len(curve), 40).astype(int).tolist()})
        curves[str(rate)] = {"CPU seconds": [n * per_epoch for n in thinned],
                             "excess": [curve[n - 1] for n in thinned]}  # fmt: skip
    started = time.process_time()
    fitted = fit(Moments.from_rows(open_rows(store), train), "least_squares")
    ours = time.process_time() - started
    for row in rows:
        row["times coarlib"] = None if row["CPU seconds"] is None else row["CPU seconds"] / ours
    rows.append({"learning rate": "coarlib (exact)", "epochs to 1e-6": 1,
                 "excess reached": float(fitted.gap.max()), "CPU seconds": ours,
                 "times coarlib": 1.0})  # fmt: skip
    title = f"fast_l1's SAGA (torch, CPU), N={ROWS}, M={FEATURES}, T={TARGETS}, batch {BATCH}"
    reporting.table(title, rows)
    return {"problem": title, "CPU seconds an epoch, all targets": per_epoch,
            "runs": rows, "curves": curves}  # fmt: skip


def standardised(masks, problem):
    x = torch.from_numpy(masks).float()
    x -= torch.from_numpy(problem.mean).float()
    x /= torch.from_numpy(problem.scale).float()
    return x


def lasso_cifar_size(store):
    """Published and tuned settings on the store of the least squares (dense effects)."""
    train, held = np.arange(ROWS), np.arange(ROWS, 50_000)
    few = open_rows(store, targets=slice(0, COUNTED))

    def moments():
        source = open_rows(store)
        return Moments.from_rows(source, train), Moments.from_rows(source, held)

    rates = (1e-2, 3e-2, 5e-2)
    bounds = (120, 4500)
    return compare_lasso(few.read(train), few.read(held), moments, TARGETS, {BATCH: rates}, bounds)


def lasso_sparse():
    """The same on the problem of regression_lasso.py: N=5,000, M=2,000, few effects a target."""
    rows = 5000
    masks, outputs = sparse_problem(rows + 1000, 2000, PATH_TARGETS)
    parts = slice(0, rows), slice(rows, None)

    def moments():
        return [Moments.from_arrays(masks[part], outputs[part]) for part in parts]

    fit, held = ((masks[part], outputs[part, :COUNTED]) for part in parts)
    rates = {BATCH: (1e-2, 5e-2, 1e-1, 2e-1), 500: (1e-2, 3e-2, 5e-2, 1e-1)}
    return compare_lasso(fit, held, moments, PATH_TARGETS, rates, (150, 20_000))


def compare_lasso(fit, held, moments, targets, rates, bounds):
    """Compare on one problem.

    ``fit`` and ``held`` are masks and the outputs of the targets whose epochs are counted;
    ``moments`` is called for those of all targets; ``rates`` are learning rates by batch size;
    ``bounds`` are the most epochs of the grid, and of the published tolerance.
    """
    with compiling_everything():
        Moments.from_arrays(*(part[:100] for part in fit))
    ours, problem, solved = coarlib_lasso(moments, targets, raw_start(fit))
    scale = torch.from_numpy(problem.scale).float()
    (x, y), (held_x, held_y) = (
        (standardised(masks, problem), torch.from_numpy(outputs.astype(np.float32)))
        for masks, outputs in (fit, held)
    )
    error = np.nanmin(solved.path["validation_error"], axis=1)[: y.shape[1]]
    rows, drift = [], None
    for batch, some in rates.items():
        task = Task(x, y, held_x, held_y, scale, raw_start(fit), NUM_LAMBDAS, EPS, batch)
        cost = seconds_an_epoch(len(x), x.shape[1], targets, batch, len(held_x))
        grid = [Settings(*one) for one in product(some, STOPS, CHECKS)]
        slow = [Settings(rate, PUBLISHED.stop, PUBLISHED.check) for rate in some]
        if batch == BATCH:
            slow.append(PUBLISHED)
            drift = task.drift(PUBLISHED.rate, DRIFT_EPOCHS)
        found = task.follow(grid, bounds[0]) + task.follow(slow, BY_BATCHES, bounds[1])
        rows += [line(one, batch, found, cost, error, ours["CPU seconds"]) for one in grid + slow]
    length = np.isfinite(solved.path["gap"]).sum(1)
    title = f"lasso with validation stop, N={len(x)}, M={x.shape[1]}, T={targets}"
    reporting.table(title, [quoted for quoted in chosen(rows).values() if quoted is not None])
    print({key: round(value, 4) for key, value in ours.items()})
    return {
        "problem": f"{title}, {NUM_LAMBDAS} λ, epochs counted on {y.shape[1]} targets",
        "epochs": f"tolerance {PUBLISHED.stop:g}: {BY_BATCHES} by batches, then the mean iteration "
                  f"to at most {bounds[1]}; others by batches, at most {bounds[0]}",
        f"distance of mean iteration and SAGA, {DRIFT_EPOCHS} epochs at {PUBLISHED.rate:g}": drift,
        "coarlib": ours | {"λ solved, mean": float(length.mean()),
                           "largest gap": float(np.nanmax(solved.path["gap"]))},
        "quoted": [{"fast_l1 at": name} | (row or {}) for name, row in chosen(rows).items()],
        "settings tried": len(rows),
        "those at the published tolerance or near coarlib's validation error": [
            row for row in rows if row["tolerance"] == PUBLISHED.stop or is_near(row)
        ],
    }  # fmt: skip


def raw_start(fit):
    masks, outputs = fit
    return largest_lambda(torch.from_numpy(masks).float(),
                          torch.from_numpy(outputs.astype(np.float32)))  # fmt: skip


def coarlib_lasso(moments, targets, start):
    """CPU seconds of moments (all targets) and path (some, scaled to all), and the solution."""
    started = time.process_time()
    train, held = moments()
    every = Problem.from_moments(train)
    spent = time.process_time() - started
    some = slice(0, PATH_TARGETS)
    held = held.targets(some)
    problem = Problem(train.targets(some), every.active, every.mean, every.scale, every.gram)
    one = Problem(train.targets(slice(0, 1)), every.active, every.mean, every.scale, every.gram)
    with compiling_everything():
        Lasso(num_lambdas=2).solve(replace(one, validation=held.targets(slice(0, 1))))
    top = problem.covariance(slice(0, len(start))).abs().amax(0)
    eps = EPS * float((start / top).min())
    started = time.process_time()
    solved = Lasso(num_lambdas=NUM_LAMBDAS, eps=eps).solve(replace(problem, validation=held))
    path = (time.process_time() - started) / problem.num_targets
    ours = {"CPU seconds": spent + path * targets, "CPU seconds of moments": spent,
            "CPU seconds of the path, a target": path, "smallest λ / largest": eps}  # fmt: skip
    return ours, problem, solved


def line(settings, batch, found, cost, error, ours):
    """One row of the table: mean over the counted targets under one setting."""
    mine = sorted((f for f in found if f.settings == settings), key=lambda f: f.target)
    epochs, looks = (
        float(np.mean([getattr(f, key) for f in mine])) for key in ("epochs", "checks")
    )
    seconds = epochs * cost[0] + looks * cost[1]
    worse = float(np.mean([f.error for f in mine] / error))
    return {
        "learning rate": settings.rate,
        "tolerance": settings.stop,
        "look every": settings.check,
        "batch": batch,
        "ended": ", ".join(sorted({f.ended for f in mine})),
        "epochs": epochs,
        "λ done": float(np.mean([f.lambdas for f in mine])),
        "validation error / coarlib's": worse if np.isfinite(worse) else None,
        "CPU seconds": seconds,
        "times coarlib": seconds / ours,
    }


def is_near(row):
    """Whether a run ended by itself with about coarlib's validation error."""
    return row["ended"] == "finished" and row["validation error / coarlib's"] <= NEAR


def chosen(rows):
    """The rows to quote; one that was not finished is a lower bound of what it takes."""

    def cheapest(some):
        near = [row for row in some if is_near(row)]
        return min(near, key=lambda row: row["CPU seconds"], default=None)

    def most_lambdas(some):
        kept = [row for row in some if "diverged" not in row["ended"]]
        return max(kept, key=lambda row: row["λ done"], default=None)

    same = [row for row in rows if row["tolerance"] == PUBLISHED.stop]
    published = [row for row in same if row["learning rate"] == PUBLISHED.rate]
    return {
        "published settings": published[0],
        "best learning rate, published tolerance": cheapest(same) or most_lambdas(same),
        f"cheapest of the grid within {NEAR - 1:.0%} of coarlib's validation error": cheapest(rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--store", type=Path, help="keep (or find) the store here")
    parser.add_argument("--targets", type=int, default=8)
    args = parser.parse_args()
    path = reporting.RESULTS / f"{NAME}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or Path(folder) / "store"
        if args.part != "lasso_sparse" and not (store / "_completed.npy").is_file():
            make_store(store, 50_000, FEATURES, TARGETS)
        if args.part in ("all", "least_squares"):
            results |= least_squares(store, args.targets)
        if args.part in ("all", "lasso_cifar_size"):
            results["lasso, CIFAR size"] = lasso_cifar_size(store)
        if args.part in ("all", "lasso_sparse"):
            results["lasso, sparse"] = lasso_sparse()
    reporting.save(NAME, results, "torch", "numba")


if __name__ == "__main__":
    main()

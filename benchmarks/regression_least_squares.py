"""From rows on disk to least-squares weights: coarlib against every exact way of doing it.

    python benchmarks/regression_least_squares.py [--rows 10000] [--features 2304] [--targets 1000]
    python benchmarks/regression_least_squares.py --cifar      # COAR's CIFAR size, coarlib only

All methods read the same store (bool masks, float16 outputs), take an intercept and give weights
for all targets; all are exact, so the largest difference from coarlib's weights stands beside the
time. Every method is warmed up on a small store, they take turns on one thread, and each keeps the
best of its turns. Ratios are of CPU seconds, so that other work on the machine does not enter. The
limit is the float32 product X'Y (measured) plus the packed pair counts: no method that forms the
moments can be faster.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting
import torch
from numpy.lib.format import open_memmap
from sklearn.linear_model import LinearRegression, Ridge

from coarlib.compiled import compiling_everything
from coarlib.regression import Moments, fit, open_rows
from coarlib.regression.moments.counts import PairCounter

KEEP = 0.9


def make_store(path, rows, features, targets, seed=0):
    """Rows of a COAR-like store: few strong components, shared noise, float16."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    masks = open_memmap(path / "masks.npy", "w+", bool, (rows, features))
    outputs = open_memmap(path / "test_margins.npy", "w+", np.float16, (rows, targets))
    strength = np.exp(1.5 * rng.standard_normal((features, 1))).astype(np.float32)
    weight = strength * rng.standard_normal((features, targets), dtype=np.float32)
    weight /= np.sqrt((weight**2).sum(0) * KEEP * (1 - KEEP))
    for start in range(0, rows, 2500):
        x = rng.random((min(2500, rows - start), features), dtype=np.float32) < KEEP
        noise = rng.standard_normal((len(x), targets), dtype=np.float32)
        masks[start : start + len(x)] = x
        outputs[start : start + len(x)] = x @ weight + 0.8 * noise
    np.save(path / "_completed.npy", np.ones(rows, bool))


def coarlib_fit(store):
    fitted = fit(Moments.from_rows(open_rows(store)), "least_squares")
    return fitted.weight, fitted.bias


def coarlib_with_robust_errors(store):
    """The same from rows that are at hand: run_regression's way."""
    source = open_rows(store)
    rows = source, np.arange(len(source.row_ids))
    fitted = fit(Moments.from_rows(source), "least_squares", rows=rows)
    return fitted.weight, fitted.bias


def arrays(store, dtype):
    return (np.load(store / f"{key}.npy", mmap_mode="r").astype(dtype) for key in
            ("masks", "test_margins"))  # fmt: skip


def scikit(model, dtype):
    def fit(store):
        x, y = arrays(store, dtype)
        fitted = model().fit(x, y)
        return fitted.coef_.T, fitted.intercept_

    return fit


def lstsq(library, dtype):
    def fit(store):
        x, y = arrays(store, dtype)
        mean_x, mean_y = x.mean(0), y.mean(0)
        x -= mean_x
        y -= mean_y
        if library == "numpy":
            weight = np.linalg.lstsq(x, y, rcond=None)[0]
        else:
            solved = torch.linalg.lstsq(torch.from_numpy(x), torch.from_numpy(y), driver="gels")
            weight = solved.solution.numpy()
        return weight, mean_y - mean_x @ weight

    return fit


METHODS = {
    "coarlib": coarlib_fit,
    "coarlib with robust errors": coarlib_with_robust_errors,
    "torch lstsq float32": lstsq("torch", np.float32),
    "torch lstsq float64": lstsq("torch", np.float64),
    "scikit-learn Ridge(alpha=1e-8, cholesky) float32": scikit(
        lambda: Ridge(alpha=1e-8, solver="cholesky"), np.float32
    ),
    "scikit-learn Ridge(alpha=1e-8, cholesky) float64": scikit(
        lambda: Ridge(alpha=1e-8, solver="cholesky"), np.float64
    ),
    "numpy lstsq float64": lstsq("numpy", np.float64),
    "scikit-learn LinearRegression float32": scikit(LinearRegression, np.float32),
    "scikit-learn LinearRegression float64": scikit(LinearRegression, np.float64),
}


def physical_limit(store):
    """Seconds of the float32 product X'Y plus the packed counts, on data in memory."""
    x, y = arrays(store, np.float32)
    masks = x != 0
    wall, cpu = time.perf_counter(), time.process_time()
    torch.from_numpy(x).T @ torch.from_numpy(y)
    PairCounter(masks.shape[1]).add(masks)
    return time.perf_counter() - wall, time.process_time() - cpu


def timed(method, store):
    """Wall and CPU seconds; CPU seconds hold on a machine others use too."""
    started, used = time.perf_counter(), time.process_time()
    weight = np.asarray(method(store)[0])
    return time.perf_counter() - started, time.process_time() - used, weight


def compare(store, small, repeats, problem):
    with compiling_everything():
        for method in METHODS.values():
            method(small)  # imports, and ours compiles
    turns = {name: [] for name in ("limit", *METHODS)}
    reference, difference = None, {}
    for _ in range(repeats):
        turns["limit"].append(physical_limit(store))
        for name, method in METHODS.items():
            *seconds, weight = timed(method, store)
            turns[name].append(seconds)
            reference = weight if reference is None else reference
            difference[name] = float(np.abs(weight - reference).max())
            print(name, seconds, flush=True)
    best = {name: np.min(found, axis=0).tolist() for name, found in turns.items()}
    rows = [
        {
            "method": "limit: X'Y and packed counts" if name == "limit" else name,
            "seconds": wall,
            "CPU seconds": cpu,
            "largest difference from coarlib": difference.get(name),
            "times coarlib": cpu / best["coarlib"][1],
        }
        for name, (wall, cpu) in best.items()
    ]
    reporting.table(problem, rows)
    results = {"problem": problem, "threads": 1, "turns": repeats, "methods": rows}
    reporting.save("regression_least_squares", results, "torch", "numba", "scikit-learn")


def cifar(store):
    """The size of COAR's CIFAR set-up, from disk to weights and standard errors."""
    started, used = time.perf_counter(), time.process_time()
    moments = Moments.from_rows(open_rows(store), quiet=False)
    middle = time.perf_counter()
    fitted = fit(moments, "least_squares")
    stop, used = time.perf_counter(), time.process_time() - used
    x, y = torch.ones(4096, 2304), torch.ones(4096, 10_000)
    product = np.inf
    for _ in range(3):
        begun = time.perf_counter()
        x.T @ y
        product = min(product, time.perf_counter() - begun)
    return {
        "rows x features x targets": [moments.num_rows, *fitted.weight.shape],
        "seconds": stop - started,
        "CPU seconds": used,
        "seconds of moments": middle - started,
        "seconds of solving": stop - middle,
        "seconds of X'Y at the measured float32 speed": product * moments.num_rows / 4096,
        "peak memory GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "largest certified gap": float(fitted.gap.max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2304)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cifar", action="store_true")
    parser.add_argument("--store", type=Path, help="keep (or find) the store here")
    args = parser.parse_args()
    reporting.one_thread()
    if args.cifar:
        args.rows, args.features, args.targets = 50_000, 2304, 10_000
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or Path(folder) / "store"
        if not (store / "_completed.npy").is_file():
            make_store(store, args.rows, args.features, args.targets)
        if args.cifar:
            result = cifar(store)
            print("\n".join(f"{key:>46}  {value}" for key, value in result.items()))
            reporting.save("regression_cifar_size", result, "torch", "numba", options=["--cifar"])
            return
        problem = f"N={args.rows}, M={args.features}, T={args.targets}, bool and float16 on disk"
        small = Path(folder) / "small"
        make_store(small, 400, 100, 50)
        compare(store, small, args.repeats, problem)


if __name__ == "__main__":
    main()

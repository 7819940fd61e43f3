"""How the cost of a fit grows with rows N, components M and targets T: fitted exponents.

    python benchmarks/regression_scaling.py

CPU seconds of the moments (one pass over rows in memory, bool and float16) and of the solvers,
varying one size at a time about a middle. An exponent is the slope of log seconds on log size over
the upper half of the sizes, where constant costs no longer matter. On paper: moments N·M·T (X'Y)
plus N·M² (counts); least squares M³ + M²T; shared prior the same a step; lasso T·(path).
regression_plots.py, which this calls, draws the results.
"""

import time

import numpy as np
import regression_plots
import reporting

from coarlib.regression import ArrayRows, Moments, fit

MIDDLE = {"N": 8000, "M": 512, "T": 200}
SIZES = {
    "N": (2000, 4000, 8000, 16_000, 32_000),
    "M": (128, 256, 512, 1024, 1536),
    "T": (50, 100, 200, 400, 800, 1600),
}
SOLVERS = {"least_squares": {}, "ridge": {}, "shared_prior": {"steps": 5}, "lasso": {"lam": 0.005}}
REPEATS = 2


def cpu_seconds(call):
    """Smallest CPU seconds of a few calls, and the last one's result."""
    best, result = np.inf, None
    for _ in range(REPEATS):
        started = time.process_time()
        result = call()
        best = min(best, time.process_time() - started)
    return best, result


def measure(sizes):
    """CPU seconds of each step at one size."""
    rng = np.random.default_rng(0)
    rows, features, targets = sizes["N"], sizes["M"], sizes["T"]
    masks = rng.random((rows, features), dtype=np.float32) < 0.9
    weight = rng.standard_normal((features, targets), dtype=np.float32)
    outputs = masks.astype(np.float32) @ weight / np.float32(features**0.5)
    outputs += 0.5 * rng.standard_normal(outputs.shape, dtype=np.float32)
    source = ArrayRows(masks, outputs.astype(np.float16))
    seconds, moments = cpu_seconds(lambda: Moments.from_rows(source))
    found = {"moments": seconds}
    for solver, options in SOLVERS.items():
        found[solver] = cpu_seconds(lambda s=solver, o=options: fit(moments, s, **o))[0]
    return found


def exponents(table, name):
    """Slopes of log seconds on log size over the upper half of the sizes."""
    upper = table[len(table) // 2 :]
    size = np.log([line[name] for line in upper])
    return {
        key: round(float(np.polyfit(size, np.log([line[key] for line in upper]), 1)[0]), 2)
        for key in table[0]
        if key not in MIDDLE
    }


def main():
    measure({"N": 256, "M": 64, "T": 8})  # compile
    results = {}
    for name, sizes in SIZES.items():
        table = []
        for size in sizes:
            at = MIDDLE | {name: size}
            table.append(at | measure(at))
        reporting.table(f"CPU seconds against {name}", table)
        results[f"against {name}"] = table
        results[f"exponents in {name}"] = exponents(table, name)
        print(results[f"exponents in {name}"])
    reporting.save("regression_scaling", results, "torch", "numba")
    regression_plots.main()


if __name__ == "__main__":
    main()

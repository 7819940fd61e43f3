"""The paper's largest set-ups on paper: memory, I/O and compute from unit costs measured here.

    python benchmarks/scaling.py

Measures what one core does of each kind of work a fit is made of (counting pairs of mask bits,
float32 and float64 products, Cholesky), and how fast this disk writes rows durably and reads them
back; then says what the published problems take on hardware built of such cores. Work is counted,
not guessed: n·N²/2 pairs, 2·n·N·T for X'Y, N³/3 for the factorisation, 2·N²·T for the solve.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting
import torch

from coarlib.regression.moments.counts import PairCounter

# (name, rows n, features N, targets T)
SETUPS = (
    ("CIFAR-10 ResNet-18", 50_000, 2_304, 10_000),
    ("ImageNet ResNet-50", 100_000, 22_720, 50_000),
    ("ImageNet ViT-B/16", 100_000, 82_944, 5_000),
    ("retrained models", 300_000, 50_000, 10_000),
)
HARDWARE = (("1 node of 64 cores", 64), ("16 nodes of 64 cores", 1024))
GIB = 2**30


def rate(work, call, repeats=5):
    """Units of work a second, the best of some calls."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return work / best


def unit_costs():
    """Operations a second and core, and bytes a second of this disk."""
    torch.set_num_threads(1)
    import numba

    numba.set_num_threads(1)
    rows, features, targets, side = 4096, 1024, 512, 1024
    masks = np.random.default_rng(0).random((rows, features)) < 0.9
    counter = PairCounter(features)
    counter.add(masks)
    x = torch.from_numpy(masks)
    found = {"pairs": rate(rows * features**2 / 2, lambda: counter.add(masks))}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        left, right = x.to(dtype).T.contiguous(), torch.ones(rows, targets, dtype=dtype)
        found[name] = rate(2 * rows * features * targets, lambda a=left, b=right: a @ b)
    matrix = torch.eye(side, dtype=torch.float64) * side + torch.rand(side, side).double()
    matrix = matrix @ matrix.T
    found["Cholesky"] = rate(side**3 / 3, lambda: torch.linalg.cholesky(matrix))
    return {**found, **disk_costs()}


def disk_costs(size=64 * 2**20):
    """Bytes a second: durable writes of 1 MiB, and reads after dropping the cache."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        file = Path(directory, "rows")
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DSYNC", os.O_SYNC))
        block = os.urandom(2**20)

        def write():
            for offset in range(0, size, len(block)):
                os.pwrite(descriptor, block, offset)

        def read():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with open(file, "rb", buffering=0) as stream:
                while stream.read(2**20):
                    pass

        found = {"durable writes": rate(size, write, 2), "reads": rate(size, read, 3)}
        os.close(descriptor)
    return found


def memory(rows, features, targets):
    """GiB by part."""
    return {
        "set-up": "",
        "rows x features x targets": f"{rows:,} x {features:,} x {targets:,}",
        "store (masks, float16)": rows * (features + 2 * targets) / GIB,
        "X'X counts int32": 4 * features**2 / GIB,
        "X'X float64": 8 * features**2 / GIB,
        "X'Y float64": 8 * features * targets / GIB,
        "weights float32": 4 * features * targets / GIB,
    }


def minutes(rows, features, targets, costs, cores):
    """Minutes by part on ``cores`` such cores, and of reading the store once by eight streams."""
    pairs = rows * features**2 / 2 / costs["pairs"] / cores
    cross = 2 * rows * features * targets / costs["float32"] / cores
    factor = features**3 / 3 / costs["Cholesky"] / min(cores, 64)  # on one node
    solve = 2 * features**2 * targets / costs["float64"] / cores
    read = rows * (features + 2 * targets) / costs["reads"]
    parts = {
        "count pairs": pairs,
        "X'Y": cross,
        "factor": factor,
        "solve": solve,
        "read once": read,
    }
    return {name: seconds / 60 for name, seconds in parts.items()}


def main():
    costs = unit_costs()
    units = [
        {"work": name, "measured a second": f"{value:.3g}", "unit": unit}
        for (name, value), unit in zip(
            costs.items(),
            ["row pairs, one core", *["flop, one core"] * 3, *["B, this disk"] * 2],
            strict=True,
        )
    ]
    reporting.table("unit costs", units)
    sizes, times = [], []
    for name, *shape in SETUPS:
        sizes.append({**memory(*shape), "set-up": name})
        for hardware, cores in HARDWARE:
            found = minutes(*shape, costs, cores)
            times.append({"set-up": name, "on": hardware, **found, "total": sum(found.values())})
    reporting.table("memory and disk, GiB", sizes)
    reporting.table("minutes of a least-squares fit", times)
    reporting.save("scaling", {"units": costs, "GiB": sizes, "minutes": times}, "torch", "numba")


if __name__ == "__main__":
    main()

"""A lasso path for many targets of one design: coarlib against the peers that install.

    python benchmarks/regression_lasso.py [--targets 32] [--peers PYTHON]

Same rows, same 100 λ from each target's largest down to 1e-2 of it, relative duality gap 1e-6.
Peers fit a target at a time, as their interfaces have it; they run in a process of their own
(--peers: an interpreter that has them; default this one), timed inside, on standardised float64
masks, and their gaps are computed by this script from their coefficients, so that a method that
stops early shows it. CPU seconds a target: what a machine pays; coarlib spreads targets over cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import reporting

from coarlib.regression import Lasso, Moments, Problem

NUM_LAMBDAS, EPS, TOL = 100, 1e-2, 1e-6
PATIENCE = 5


def problem(rows, features, targets, seed=0):
    """Sparse effects, noise for a ceiling of about .8."""
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, features)) < 0.9
    weight = rng.standard_normal((features, targets)) * (rng.random((features, targets)) < 0.02)
    signal = masks @ weight
    outputs = signal + 0.75 * signal.std(0) * rng.standard_normal(signal.shape)
    return masks, outputs - outputs.mean(0)


def coarlib_rows(masks, outputs, held_masks, held_outputs):
    train = Moments.from_arrays(masks, outputs)
    held = Moments.from_arrays(held_masks, held_outputs)
    fitted = Problem.from_moments(train)
    small = Problem.from_moments(train.targets(slice(0, 1)))
    Lasso(num_lambdas=2).solve(replace(small, validation=held.targets(slice(0, 1))))  # compile
    rows = []
    for name, patience in (("coarlib, whole path", 10**6), ("coarlib, validation stop", PATIENCE)):
        wall, cpu = time.perf_counter(), time.process_time()
        solver = Lasso(num_lambdas=NUM_LAMBDAS, eps=EPS, tol=TOL, patience=patience)
        solved = solver.solve(replace(fitted, validation=held))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        targets = outputs.shape[1]
        rows.append({
            "method": name,
            "CPU seconds a target": cpu / targets,
            "wall seconds a target": wall / targets,
            "largest gap": float(np.nanmax(solved.path["gap"])),
            "path length": float(np.isfinite(solved.path["gap"]).sum(1).mean()),
        })  # fmt: skip
    return rows, solved.path["lam"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--peer_targets", type=int, default=2)
    parser.add_argument("--peers", default=sys.executable)
    args = parser.parse_args()
    masks, outputs = problem(args.rows + 1000, args.features, args.targets)
    train, held = slice(0, args.rows), slice(args.rows, None)
    rows, lams = coarlib_rows(masks[train], outputs[train], masks[held], outputs[held])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = masks[train] - masks[train].mean(0)
        x /= x.std(0)
        y = outputs[train, : args.peer_targets]
        np.savez(folder / "problem.npz", x=np.asfortranarray(x), y=y - y.mean(0),
                 lams=lams[: args.peer_targets])  # fmt: skip
        script = Path(__file__).with_name("regression_lasso_peers.py")
        subprocess.run([args.peers, script, folder], check=True)
        peers = json.loads((folder / "peers.json").read_text())
    ours = rows[0]["CPU seconds a target"]
    for name, found in peers.items():
        rows.append({"method": name, **found})
    for row in rows:
        if "failed" not in row:
            row["times coarlib"] = row["CPU seconds a target"] / ours
    title = f"lasso, N={args.rows}, M={args.features}, {NUM_LAMBDAS} λ to {EPS:g} λmax, gap {TOL:g}"
    columns = ("method", "CPU seconds a target", "largest gap", "path length", "times coarlib")
    reporting.table(title, [{c: row.get(c, "failed") for c in columns} for row in rows])
    results = {"problem": title, "targets": args.targets, "methods": rows}
    reporting.save("regression_lasso", results, "torch", "numba")


if __name__ == "__main__":
    main()

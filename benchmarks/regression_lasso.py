"""A lasso path for many targets of one design: coarlib against the peers that install.

    python benchmarks/regression_lasso.py [--targets 32] [--peers PYTHON]

Same bool masks and float64 outputs, same 100 λ from each target's largest down to 1e-2 of it,
relative duality gap 1e-6, one thread. Peers run in a process of their own (--peers: an interpreter
that has them; default this one) and fit a target at a time, as their interfaces have it. Both sides
are compiled on a small problem first, take turns, and keep the best of their rounds. Both clocks
start at the masks: centring, scaling and the Gram matrix, where a method uses one, are set-up,
needed once for all targets, and shared out over as many targets on both sides; coarlib's set-up
includes the moments of the validation rows. Gaps of both sides are computed from their
coefficients, by the same function. CPU seconds a target: what a machine pays.
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
from regression_lasso_peers import CHECKED, relative_gap, standardised

from coarlib.regression import Lasso, Moments, Problem

NUM_LAMBDAS, EPS, TOL = 100, 1e-2, 1e-6
WAYS = {"coarlib, whole path": 10**6, "coarlib, validation stop": Lasso.patience}


def problem(rows, features, targets, seed=0):
    """Sparse effects, noise for a ceiling of about .8."""
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, features)) < 0.9
    weight = rng.standard_normal((features, targets)) * (rng.random((features, targets)) < 0.02)
    signal = masks @ weight
    outputs = signal + 0.75 * signal.std(0) * rng.standard_normal(signal.shape)
    return masks, outputs - outputs.mean(0)


def set_up(train, held):
    """What all targets share: the moments of both parts, and the standardised problem."""
    moments = [Moments.from_arrays(*part) for part in (train, held)]
    return replace(Problem.from_moments(moments[0]), validation=moments[1])


def coarlib_round(train, held):
    """CPU seconds of set-up and path, for all targets; and the solutions."""
    found = {}
    for name, patience in WAYS.items():
        started = time.process_time()
        shared = set_up(train, held)
        middle = time.process_time()
        solver = Lasso(num_lambdas=NUM_LAMBDAS, eps=EPS, tol=TOL, path_tol=TOL, patience=patience)
        solved = solver.solve(shared)
        found[name] = middle - started, time.process_time() - middle, solved
    return found


def recomputed_gaps(train, lams, targets):
    """Gaps of the path's weights, as the peers' are computed.

    Judged by the rows that it fits a path never stops, and its last λ is kept: so the weights of
    each λ are seen.
    """
    masks, outputs = train
    shared = set_up(*[(masks, outputs[:, :targets])] * 2)
    x, gaps = standardised(masks), []
    for index in CHECKED:
        eps = EPS ** (index / (NUM_LAMBDAS - 1))
        solved = Lasso(num_lambdas=index + 1, eps=eps, tol=TOL, path_tol=TOL, patience=10**6).solve(
            shared
        )
        for t in range(targets):
            weight = solved.weight[:, t] * masks.std(0)
            gaps.append(relative_gap(x, outputs[:, t], weight, lams[t, index]))
    return gaps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--peer_targets", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable)
    args = parser.parse_args()
    reporting.one_thread()
    masks, outputs = problem(args.rows + 1000, args.features, args.targets)
    parts = slice(0, args.rows), slice(args.rows, None)
    train, held = ((masks[part], outputs[part] - outputs[parts[0]].mean(0)) for part in parts)
    small = (masks[:200], outputs[:200, :1])
    Lasso(num_lambdas=2).solve(set_up(small, small))  # compile
    ours, peers = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.rounds):
            ours.append(coarlib_round(train, held))
            lams = ours[0]["coarlib, whole path"][2].path["lam"]
            np.savez(folder / "problem.npz", masks=train[0], y=train[1][:, : args.peer_targets],
                     lams=lams[: args.peer_targets])  # fmt: skip
            script = Path(__file__).with_name("regression_lasso_peers.py")
            subprocess.run([args.peers, script, folder], check=True)
            peers.append(json.loads((folder / "peers.json").read_text()))
    gaps = recomputed_gaps(train, lams, args.peer_targets)
    rows, versions = [], {}
    for way in WAYS:
        setup = min(one[way][0] for one in ours) / args.targets
        path = min(one[way][1] for one in ours) / args.targets
        length = np.isfinite(ours[0][way][2].path["gap"]).sum(1).mean()
        rows.append(line(way, setup, path, float(length), max(gaps)))
    for peer, found in peers[0].items():
        if "failed" not in found:
            setup, path = (min(one[peer][key] for one in peers) for key in ("set-up", "path"))
            rows.append(line(peer, setup / args.targets, path, found["length"], found["gap"]))
            versions[found["package"]] = found["version"]
    for row in rows:
        row["times coarlib"] = row["CPU seconds a target"] / rows[0]["CPU seconds a target"]
    title = f"lasso, N={args.rows}, M={args.features}, {NUM_LAMBDAS} λ to {EPS:g} λmax, gap {TOL:g}"
    reporting.table(title, rows)
    results = {"problem": title, "targets": args.targets, "threads": 1, "methods": rows}
    reporting.save("regression_lasso", results, "torch", "numba", peers=versions)


def line(method, setup, path, length, gap):
    return {
        "method": method,
        "CPU seconds a target": setup + path,
        "of these set-up": setup,
        "largest gap": float(gap),
        "path length": length,
    }


if __name__ == "__main__":
    main()

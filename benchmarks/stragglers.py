"""Two hundred processes share out one store while ten are throttled and two frozen.

    python benchmarks/stragglers.py [--workers 200] [--rows 6000]

The library's own workers (coarlib.filling.worker.fill with claims), as processes of one machine;
a row is a pause, so that two cores carry all of them. Of 200, ten need ten times as long for a row
and two are stopped (SIGSTOP) in the middle and never go on. Ideal is the time in which all of them
at their own speeds, and the frozen ones while they ran, would finish if rows could be cut at will.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import reporting
import torch

from coarlib.filling.worker import FillOptions, fill
from coarlib.masks import MaskDesign
from coarlib.store import Store, initialize
from coarlib.store.provenance import read_batches
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import verify
from coarlib.task import Task

FEATURES, SLOWNESS = 64, 10
WEIGHTS = np.random.default_rng(11).normal(size=FEATURES)


class Paced(Task):
    """margins = masks @ weights, after a pause for each row."""

    rows_per_batch = 4

    def __init__(self, seconds):
        self.seconds = seconds

    def identity(self):
        return "paced"

    def rows(self, indices, masks):
        time.sleep(self.seconds * len(indices))
        return {"margins": (masks @ WEIGHTS)[:, None].astype(np.float32)}


def work(path, seconds):
    """One worker, in a process of its own; never returns."""
    code = 1
    try:
        rows = np.arange(Store.open(path).num_models)
        options = FillOptions(claim=True, quiet=True)
        fill(path, Paced(seconds), rows, torch.device("cpu"), options)
        code = 0
    finally:
        os._exit(code)


def run(path, rows, workers, row_seconds):
    """Fill ``path``; what happened."""
    slow, frozen = workers // 20, max(1, workers // 100)
    schema = {"masks": ArraySpec(np.dtype(np.bool_), (FEATURES,))}
    schema["margins"] = ArraySpec(np.dtype(np.float32), (1,))
    initialize(path, StoreSpec(rows, schema, MaskDesign(keep_prob=0.9, seed=3)))
    store, pids = Store.open(path), []
    began = time.monotonic()
    for index in range(workers):
        pid = os.fork()
        if pid == 0:
            work(path, row_seconds * (SLOWNESS if index < slow else 1))
        pids.append(pid)
    speed = (workers - slow + slow / SLOWNESS) / row_seconds  # rows a second, all of them
    ideal_stop = 0.5 * rows / speed
    time.sleep(max(0.0, ideal_stop - (time.monotonic() - began)))
    stopped = pids[-frozen:]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    froze_at = time.monotonic() - began
    while not store.completed().all():
        time.sleep(0.1)
    seconds = time.monotonic() - began
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids[:-frozen])
    left = rows - speed * froze_at
    ideal = froze_at + max(0.0, left) / (speed - frozen / row_seconds)
    computed = Counter(
        row for batch in read_batches(path) for a, b in batch.ranges for row in range(a, b)
    )
    masks = np.asarray(store.array("masks"))
    right = (masks @ WEIGHTS).astype(np.float32)
    return {
        "processes": workers,
        "throttled": slow,
        "frozen": frozen,
        "rows": rows,
        "row seconds": row_seconds,
        "seconds": round(seconds, 1),
        "ideal seconds": round(ideal, 1),
        "over ideal": round(seconds / ideal, 3),
        "doubled rows": f"{(sum(computed.values()) - len(computed)) / rows:.2%}",
        "lost": rows - int(store.completed().sum()),
        "wrong": int((np.asarray(store.array("margins"))[:, 0] != right).sum()),
        "verified": verify(store).sound,
        "failed processes": failed,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--row_seconds", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        found = run(Path(parent) / "store", args.rows, args.workers, args.row_seconds)
    reporting.table("stragglers", [found])
    reporting.save("stragglers", found)
    sys.exit(0 if found["verified"] and not found["wrong"] and not found["lost"] else 1)


if __name__ == "__main__":
    main()

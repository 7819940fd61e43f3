"""A recording with checkpoints, killed (SIGKILL) at random moments and resumed, again and again.

    python benchmarks/killed_recordings.py [--kills 100] [--seed 0]

Each run is killed at random moments, up to six times, resumed from the user's last checkpoint each
time, and ended; its explanation then has to equal that of a run that was never interrupted, bit for
bit: every array, of both optimizers, with every state kept and with every fourth.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from zoo.preempted_runs import ADAM, SGD, explained, in_child, kill, train

from coarlib.history import recorder

PAUSE = 0.01  # an update; so that kills fall everywhere
KILLS_A_RUN = 6
KINDS = {"AdamW": ADAM, "SGD with momentum": SGD}


def one_run(folder, run, every, wanted, rng):
    """Train one run under fire, then to its end; returns (kills, arrays that differ)."""
    folder.mkdir()
    kills = 0
    for _ in range(KILLS_A_RUN):
        child = in_child(lambda: train(folder, run, every, pause=PAUSE))
        kills += kill(child, rng.uniform(0.02, 0.35))
    found = explained(folder, train(folder, run, every))
    return kills, [
        k for k, v in wanted.arrays.items() if not np.array_equal(found[k], v, equal_nan=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recorder.FLUSH_SECONDS = 0.01
    rng, started, rows = np.random.default_rng(args.seed), time.perf_counter(), []
    kinds = [(name, every) for name in KINDS for every in (1, 4)]
    for name, every in kinds:
        row = {"optimizer": name, "every": every, "kills": 0, "runs": 0, "runs that differ": 0}
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            wanted = explained(whole, train(whole, KINDS[name], every))
            while row["kills"] < args.kills / len(kinds):
                folder = Path(scratch) / f"run{row['runs']}"
                kills, differ = one_run(folder, KINDS[name], every, wanted, rng)
                row["kills"] += kills
                row["runs"] += 1
                row["runs that differ"] += bool(differ)
        rows.append(row)
        print(row, flush=True)
    reporting.table("recordings killed and resumed", rows)
    total = {key: sum(row[key] for row in rows) for key in ("kills", "runs", "runs that differ")}
    print(total)
    results = {"total": total, "seconds": time.perf_counter() - started, "rows": rows}
    reporting.save("killed_recordings", results, "torch")


if __name__ == "__main__":
    main()

"""A soak: claiming workers fill one store while one of them is killed at random every second.

    python benchmarks/soak.py [STORE]

Four workers, 20,000 rows; each victim of SIGKILL is replaced at once, until the store is full.
Then every row is verified, compared with its recomputation, and looked up in the provenance.
"""

import contextlib
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coarlib.filling.worker import FillOptions, fill
from coarlib.masks import MaskDesign
from coarlib.store import Store, initialize
from coarlib.store.claims import list_claims
from coarlib.store.layout import CLAIMS_DIR
from coarlib.store.provenance import read_batches
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import verify
from coarlib.task import Task

FEATURES, TARGETS = 512, 1000
FORK = multiprocessing.get_context("fork")  # a start costs milliseconds, not an import of torch


class SoakTask(Task):
    """margins = masks @ weights, slowed down so that kills find workers in the middle."""

    rows_per_batch = 8

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.weights = np.random.default_rng(0).integers(-2, 3, (FEATURES, TARGETS))

    def rows(self, indices, masks):
        time.sleep(self.seconds * random.random() * 2)
        return {"margins": (masks @ self.weights).astype(np.float16)}


@dataclass
class Soaked:
    """What a soak found; ``recomputed`` are rows computed again after a takeover."""

    rows: int
    workers: int
    seconds: float
    kills: int
    takeovers: int
    recomputed: int
    lost: int
    torn: int
    wrong: int
    without_provenance: int

    @property
    def sound(self):
        return not (self.lost or self.torn or self.wrong or self.without_provenance)


def soak(path, rows, workers=4, seconds_between_kills=1.0, seconds_per_batch=0.2, quiet=True):
    """Fill ``path`` under fire and check everything afterwards."""
    schema = {
        "masks": ArraySpec(np.dtype(np.bool_), (FEATURES,)),
        "margins": ArraySpec(np.dtype(np.float16), (TARGETS,)),
    }
    initialize(path, StoreSpec(rows, schema, MaskDesign(keep_prob=0.9, seed=3)))
    started = time.monotonic()
    kills = _fill_under_fire(path, workers, seconds_between_kills, seconds_per_batch, quiet)
    seconds = time.monotonic() - started
    store = Store.open(path)
    report = verify(store)
    computed = Counter(
        row for batch in read_batches(path) for a, b in batch.ranges for row in range(a, b)
    )
    blocks = [list_claims(block)[0] for block in (path / CLAIMS_DIR).iterdir() if block.is_dir()]
    return Soaked(
        rows=rows,
        workers=workers,
        seconds=seconds,
        kills=kills,
        takeovers=sum(claim.generation for owners in blocks for claim in owners.values()),
        recomputed=sum(computed.values()) - len(computed),
        lost=rows - len(store.completed_rows()),
        torn=len(report.torn) + len(report.unflagged) + len(report.unfounded),
        wrong=_wrong_rows(store),
        without_provenance=_unknown_rows(store),
    )


def _fill_under_fire(path, workers, seconds_between_kills, seconds_per_batch, quiet):
    def work():
        store = Store.open(path)
        rows = np.arange(store.num_models)
        options = FillOptions(claim=True, quiet=True)
        fill(store, SoakTask(seconds_per_batch), rows, torch.device("cpu"), options)

    def start():
        process = FORK.Process(target=work)
        process.start()
        return process

    crew, kills = [start() for _ in range(workers)], 0
    while any(process.is_alive() for process in crew):
        time.sleep(seconds_between_kills)
        victim = random.randrange(workers)
        if not crew[victim].is_alive():
            continue
        crew[victim].kill()
        crew[victim].join()
        if crew[victim].exitcode != -signal.SIGKILL:  # it ended just before
            continue
        kills += 1
        crew[victim] = start()  # also when all is done: what was cut short is put right at a start
        if not quiet and kills % 20 == 0:
            print(f"  {kills} kills, {len(Store.open(path).completed_rows())} rows", flush=True)
    if any(process.exitcode for process in crew):
        raise RuntimeError("a worker failed by itself")
    return kills


def _wrong_rows(store):
    """Rows whose stored bytes are not what the design and the task give."""
    task, wrong = SoakTask(0), 0
    for rows, arrays in store.blocks(("masks", "margins")):
        masks = store.draw_masks(store.design, rows)
        same = (arrays["masks"] == masks).all(1)
        same &= (arrays["margins"] == task.rows(rows, masks)["margins"]).all(1)
        wrong += int((~same).sum())
    return wrong


def _unknown_rows(store):
    """Rows whose checksum stands in no worker's log."""
    digests = {int(word, 16) for batch in read_batches(store.path) for word in batch.digests}
    return sum(digest not in digests for digest in store.checksums().tolist() if digest)


def main():
    import reporting

    with contextlib.ExitStack() as stack:
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store"
        found = soak(path, rows=20_000, quiet=False)
    reporting.table("soak", [{"what": name, "value": value} for name, value in vars(found).items()])
    reporting.save("soak", vars(found), "torch", "xxhash")
    sys.exit(0 if found.sound and found.kills >= 100 else 1)


if __name__ == "__main__":
    main()

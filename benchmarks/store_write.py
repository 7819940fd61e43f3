"""Durable row writes beside upstream's: 2304 bools and 10000 half floats a row.

    python benchmarks/store_write.py [DIRECTORY]

Upstream's pattern (COAR's update_mmapped_file): each array is opened as a writable map, its rows
are assigned, the map is flushed; the completed flags last. A flush makes it durable on a local
disk too, but in no order that protects a row, and loses rows on network file systems. The limit is
the disk's own cost of one durable write of the row's bytes. Every way is warmed up, and its ratio
is that of turns next to each other, at the same number of rows a batch and of processes.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting

from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import verify

SCHEMA = {
    "masks": ArraySpec(np.dtype(np.bool_), (2304,)),
    "test_margins": ArraySpec(np.dtype(np.float16), (10_000,)),
}
FORK = multiprocessing.get_context("fork")
ROWS_OF_BATCH = {1: 64, 64: 256}  # rows a process writes in one turn
REPEATS = 15  # short turns, many of them: the ways share the machine's moods


def values(count):
    rng = np.random.default_rng(0)
    return {
        "masks": rng.random((count, 2304)) < 0.9,
        "test_margins": rng.standard_normal((count, 10_000)).astype(np.float16),
    }


def upstream(path, rows, batch, arrays):
    for start in range(*rows, batch):
        done = {**arrays, "_completed": np.ones(batch, bool)}
        for key, value in done.items():
            array = np.lib.format.open_memmap(path / f"{key}.npy", mode="r+")
            array[start : start + batch] = value
            array.flush()


def ours(path, rows, batch, arrays):
    with RowWriter(Store.open(path)) as writer:
        for start in range(*rows, batch):
            writer.write(np.arange(start, start + batch), arrays)


def one_durable_write(path, rows, batch, arrays):
    """The limit: the same bytes in one synchronous write a batch."""
    data = b"".join(value.tobytes() for value in arrays.values())
    descriptor = os.open(path / "limit", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    for start in range(*rows, batch):
        os.pwrite(descriptor, data, start // batch * len(data))
    os.close(descriptor)


def timed(way, path, processes, batch, offset):
    """Rows a second of ``processes`` writers on disjoint rows."""
    arrays, count = values(batch), ROWS_OF_BATCH[batch]
    barrier = FORK.Barrier(processes + 1)

    def work(number):
        barrier.wait()
        first = offset + number * count
        way(path, (first, first + count), batch, arrays)

    crew = [FORK.Process(target=work, args=(number,)) for number in range(processes)]
    for process in crew:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in crew:
        process.join()
    seconds = time.perf_counter() - started
    if any(process.exitcode for process in crew):
        raise RuntimeError("a writer failed")
    return processes * count / seconds


def compare(directory, processes, batch):
    """Median rows a second of each way, in turns on fresh rows of a store each."""
    ways = {"coarlib": ours, "upstream": upstream, "limit": one_durable_write}
    turn = processes * ROWS_OF_BATCH[batch]
    rows = turn * (REPEATS + 1)
    rates = {name: [] for name in ways}
    with contextlib.ExitStack() as stack:
        paths = {}
        for name in ways:
            parent = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
            paths[name] = parent / "store"
            initialize(paths[name], StoreSpec(rows, SCHEMA))
        for repeat in range(REPEATS + 1):
            for name, way in ways.items():
                rate = timed(way, paths[name], processes, batch, repeat * turn)
                rates[name] += [rate] if repeat > 0 else []  # the first turn warms up
        report = verify(Store.open(paths["coarlib"]))
        if report.checked != rows or not report.sound:
            raise RuntimeError("rows were lost")
    found = {name: float(np.median(rate)) for name, rate in rates.items()}
    return {
        "processes": processes,
        "rows a batch": batch,
        **{f"{name} rows/s": rate for name, rate in found.items()},
        "coarlib / upstream": float(
            np.median(np.array(rates["coarlib"]) / np.array(rates["upstream"]))
        ),
        "coarlib / limit": found["coarlib"] / found["limit"],
        "spread of the ratio": [
            float(f(np.array(rates["coarlib"]) / np.array(rates["upstream"]))) for f in (min, max)
        ],
    }


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    cases = [compare(directory, p, b) for p in (1, 4) for b in (1, 64)]
    reporting.table("durable rows of 22 kB", cases)
    reporting.save("store_write", cases, "xxhash")


if __name__ == "__main__":
    main()

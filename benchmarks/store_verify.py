"""Checking a store beside reading its files with cat, from the page cache and from the disk.

    python benchmarks/store_verify.py [DIRECTORY]

The limit is `cat FILES > /dev/null`, which does nothing but read. Cold runs drop the files' cached
pages first.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting

from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import verify

SCHEMAS = {
    "CIFAR ResNet (2304 bool, 10000 float16)": {
        "masks": ArraySpec(np.dtype(np.bool_), (2304,)),
        "test_margins": ArraySpec(np.dtype(np.float16), (10_000,)),
    },
    "ImageNet ViT (82944 bool, 5000 float16)": {
        "masks": ArraySpec(np.dtype(np.bool_), (82_944,)),
        "test_margins": ArraySpec(np.dtype(np.float16), (5000,)),
    },
}
BYTES = 800_000_000
REPEATS = 15  # in turns; the best of each is what the machine can do


def filled(path, schema):
    rows = BYTES // sum(array.row_bytes for array in schema.values())
    initialize(path, StoreSpec(rows, schema))
    store, rng = Store.open(path), np.random.default_rng(0)
    with RowWriter(store) as writer:
        for first in range(0, rows, 500):
            block = np.arange(first, min(first + 500, rows))
            arrays = {
                key: np.frombuffer(rng.bytes(len(block) * spec.row_bytes), np.uint8) & 1
                for key, spec in schema.items()
            }
            writer.write(
                block,
                {
                    key: arrays[key].view(spec.dtype).reshape(len(block), *spec.shape)
                    for key, spec in schema.items()
                },
            )
    return store


def forget(files):
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def compare(name, schema, directory):
    with tempfile.TemporaryDirectory(dir=directory) as parent:
        store = filled(Path(parent) / "store", schema)
        files = sorted(map(str, store.path.glob("*.npy")))
        size = sum(map(os.path.getsize, files))
        rows = []
        for cold in (False, True):
            rates = {"verify": [], "cat": []}
            for _ in range(REPEATS):
                for way, found in rates.items():
                    if cold:
                        forget(files)
                    started = time.perf_counter()
                    if way == "cat":
                        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
                    elif not verify(store).sound:
                        raise RuntimeError("torn rows")
                    found.append(size / (time.perf_counter() - started) / 1e9)
            best = {way: max(found) for way, found in rates.items()}
            medians = {way: float(np.median(found)) for way, found in rates.items()}
            rows.append(
                {
                    "store": name,
                    "pages": "from disk" if cold else "cached",
                    "verify GB/s": best["verify"],
                    "cat GB/s (limit)": best["cat"],
                    "verify / cat": best["verify"] / best["cat"],
                    "of medians": medians["verify"] / medians["cat"],
                }
            )
    return rows


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    rows = [row for name, schema in SCHEMAS.items() for row in compare(name, schema, directory)]
    reporting.table("verify beside cat", rows)
    reporting.save("store_verify", rows, "xxhash")


if __name__ == "__main__":
    main()

"""Opening a store of 100,000 rows × 82,944 components, and its status: time and memory.

    python benchmarks/store_open.py [DIRECTORY]

Each measurement is a process of its own, so that nothing is warm but the page cache; what imports
take and need is measured apart. The logs of a thousand workers and two thousand claims are there,
as they are when such a store is nearly full. Peer: np.load(mmap_mode="r") of the same arrays,
which checks nothing.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting

from coarlib.store import RowWriter, Store, initialize
from coarlib.store.layout import CLAIMS_DIR, WORKERS_DIR
from coarlib.store.spec import ArraySpec, StoreSpec

ROWS = 100_000
SCHEMA = {
    "masks": ArraySpec(np.dtype(np.bool_), (82_944,)),
    "test_margins": ArraySpec(np.dtype(np.float16), (5000,)),
}
REPEATS = 7
MEASURE = """
import json, resource, sys, time
import numpy as np
from pathlib import Path
from coarlib.store import Store
from coarlib.store.status import status
def memory():
    fields = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()
    return int(fields[0]) / 1024
path = sys.argv[1]
calls = {
    "open": lambda: [Store.open(path).array(key) for key in ("masks", "test_margins")],
    "status": lambda: status(Store.open(path)),
    "completed rows": lambda: Store.open(path).completed_rows(),
    "np.load (peer)": lambda: [
        np.load(f"{path}/{key}.npy", mmap_mode="r") for key in ("masks", "test_margins")
    ],
}
before, started = memory(), time.perf_counter()
calls[sys.argv[2]]()
print(json.dumps([1e3 * (time.perf_counter() - started), memory() - before]))
"""


def build(path):
    """A store as it looks when workers have been at it for days (its rows stay sparse)."""
    initialize(path, StoreSpec(ROWS, SCHEMA))
    store, rng = Store.open(path), np.random.default_rng(0)
    with RowWriter(store) as writer:
        done = np.flatnonzero(rng.random(ROWS) < 0.9)
        checksums = np.zeros(ROWS, np.uint64)
        checksums[done] = rng.integers(1, 2**63, len(done))
        flags = np.zeros(ROWS, bool)
        flags[done] = True
        writer._pwrite("_checksums", 0, checksums)
        writer._pwrite("_completed", 0, flags)
    now = time.time()
    for worker in range(1000):
        lines = [{"worker": f"node{worker % 50}-{worker}-0", "host": f"node{worker % 50}"}]
        for batch in range(100):
            first = worker * 100 + batch
            times = {"started": now - 300 + batch, "seconds": 1.0}
            lines.append({"rows": [[first, first + 1]], **times, "digests": ["0" * 16]})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / WORKERS_DIR / f"node{worker % 50}-{worker}-0.jsonl").write_text(text)
    (path / CLAIMS_DIR / "block_rows").write_text("50\n")
    for block in range(2000):
        directory = path / CLAIMS_DIR / str(block)
        directory.mkdir()
        (directory / f"{block * 50}.0").write_text("{}")
        if block % 10:
            (directory / f"{block * 50}.0.free").touch()


def measure(path, what):
    found = [
        json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, str(path), what]))
        for _ in range(REPEATS)
    ]
    milliseconds, megabytes = np.array(found).T
    return {
        "what": what,
        "ms": float(np.median(milliseconds)),
        "worst ms": float(milliseconds.max()),
        "MB beyond imports": float(megabytes.max()),
    }


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=directory) as parent:
        path = Path(parent) / "store"
        build(path)
        names = ("open", "completed rows", "status", "np.load (peer)")
        rows = [measure(path, what) for what in names]
    reporting.table(f"store of {ROWS} x 82944, logs of 1000 workers, 2000 claims", rows)
    reporting.save("store_open", rows)


if __name__ == "__main__":
    main()

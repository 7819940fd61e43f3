"""Rows that COAR's and datamodels' own programs wrote, and what ``verify --adopt`` keeps of them.

    python benchmarks/adopt_upstream.py [--coar build/coar] [--datamodels build/datamodels]

These are checkouts of MadryLab/modelcomponents and MadryLab/datamodels: their code
runs as it is, COAR's ``get_mask`` and ``update_mmapped_file``, and datamodels' ``worker`` as a
process of its own for each row, on stores that coarlib made and on directories that their own
``initialize_store`` made. Every row has to be kept, to the bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import reporting

from coarlib.store import Store, initialize
from coarlib.store.adopt import adopt
from coarlib.store.spec import load_spec
from coarlib.store.verify import verify

FEATURES, TARGETS, KEEP_PROB = 64, 20, 0.9
SPEC = {
    "schema": {
        "masks": {"dtype": "bool_", "shape": [FEATURES]},
        "margins": {"dtype": "float16", "shape": [TARGETS]},
    }
}
# What a user of datamodels writes: an importable module with main().
TRAINER = f"""
import numpy as np


def main(*_, index, logdir):
    rng = np.random.default_rng(index)
    return {{
        "masks": rng.random({FEATURES}) < 0.5,
        "margins": rng.normal(size={TARGETS}).astype(np.float16),
    }}
"""
COAR_ROWS = f"""
import sys
import numpy as np
from src.utils import ndm_utils

np.random.seed(0)
for row in range(int(sys.argv[2])):
    mask = ndm_utils.get_mask({FEATURES}, {KEEP_PROB})
    margins = np.random.randn({TARGETS}).astype(np.float16)
    ndm_utils.update_mmapped_file(sys.argv[1], row, {{"masks": mask, "margins": margins}})
"""


def call(checkout, *arguments, also=""):
    """Run Python on their code."""
    path = os.pathsep.join(part for part in (str(checkout), str(also)) if part)
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=checkout,
        check=True,
        capture_output=True,
    )


def coar_writes(checkout, store, rows, scratch):
    call(checkout / "coar", "-c", COAR_ROWS, store, rows)


def datamodels_writes(checkout, store, rows, scratch):
    (scratch / "trainer_of_a_user.py").write_text(TRAINER)
    worker = ("-m", "datamodels.training.worker", "--worker.main_import=trainer_of_a_user")
    for row in range(rows):
        options = (f"--worker.index={row}", f"--worker.logdir={store}")
        call(checkout, *worker, *options, also=scratch)


def coar_initializes(checkout, store, spec):
    call(
        *(checkout / "coar" / "estimate", "initialize_store.py"),
        *(f"--logging.logdir={store}", f"--logging.spec={spec}"),
    )


def datamodels_initializes(checkout, store, spec):
    store.mkdir()
    call(
        *(checkout, "-m", "datamodels.training.initialize_store"),
        *(f"--logging.logdir={store}", f"--logging.spec={spec}"),
    )


def ours(checkout, store, spec):
    initialize(store, load_spec(spec))


CHECKOUTS = {"coar": "MadryLab/modelcomponents", "datamodels": "MadryLab/datamodels"}


def attempt(program, made_by, make, write, checkout, rows, scratch):
    """Make a store, have rows written, adopt them; one row of the table."""
    store, spec = scratch / "store", scratch / "spec.json"
    spec.write_text(json.dumps({"num_models": rows + 10, **SPEC}))
    make(checkout, store, spec)
    write(checkout, store, rows, scratch)
    arrays = {key: np.load(store / f"{key}.npy") for key in SPEC["schema"]}
    found = adopt(store)
    kept = Store.open(store)
    report = verify(kept)
    rowwise = [np.array_equal(kept.array(key), value) for key, value in arrays.items()]
    return {
        "rows of": program,
        "store made by": made_by,
        "rows written": rows,
        "adopted": len(found.good),
        "refused": len(found.refused),
        "verified": report.checked if report.sound else 0,
        "bytes unchanged": all(rowwise),
    }


def commit_of(checkout):
    """The commit of a checkout, if it says so."""
    found = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, home in CHECKOUTS.items():
        place = reporting.ROOT / "build" / name
        parser.add_argument(f"--{name}", type=Path, default=place, help=f"checkout of {home}")
    parser.add_argument("--rows", type=int, default=250, help="that COAR's code writes")
    parser.add_argument("--processes", type=int, default=25, help="rows of datamodels' worker")
    args = parser.parse_args()
    coar, datamodels = args.coar.resolve(), args.datamodels.resolve()
    for checkout in (coar, datamodels):
        if not checkout.is_dir():
            sys.exit(f"not measured: there is no checkout at {checkout} (--help says of what)")
    attempts = []
    for program, made_by, make, write, checkout, rows in (
        ("COAR", "coarlib", ours, coar_writes, coar, args.rows),
        ("COAR", "COAR", coar_initializes, coar_writes, coar, args.rows),
        ("datamodels", "coarlib", ours, datamodels_writes, datamodels, args.processes),
        (
            *("datamodels", "datamodels", datamodels_initializes),
            *(datamodels_writes, datamodels, args.processes),
        ),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            attempts.append(attempt(program, made_by, make, write, checkout, rows, folder))
    reporting.table("rows of other programs", attempts)
    results = {"commits": {"COAR": commit_of(coar), "datamodels": commit_of(datamodels)}}
    reporting.save("adopt_upstream", {**results, "attempts": attempts}, "fastargs")


if __name__ == "__main__":
    main()

"""Interoperation with the real ffcv, in a fresh process with a time limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from beton_schemas import ROWS, SCHEMAS, random_values

from coarlib import beton
from coarlib.beton.layout import MIN_PAGE_SIZE

pytestmark = [pytest.mark.ffcv, pytest.mark.slow, pytest.mark.timeout(1000)]

CHILD = Path(__file__).with_name("ffcv_child.py")
SECONDS = 900  # a minute on two idle cores; ffcv hangs when a worker of its fails
PAGE_SIZE = MIN_PAGE_SIZE
ORDERS = ("SEQUENTIAL", "QUASI_RANDOM", "RANDOM")
WAYS = [(name, order, cache) for name in SCHEMAS for order in ORDERS for cache in (True, False)]
# Without pages ffcv has nothing to order by page and nothing to cache.
WAYS = [way for way in WAYS if way[0] != "scalars only" or (way[1] != "QUASI_RANDOM" and way[2])]


@pytest.fixture(scope="session")
def ffcv_environment():
    """The environment in which ``import ffcv`` works; skips, or fails in CI, where none does."""
    folder = Path(sys.prefix) / "ffcv"  # made by .ci/install_ffcv.sh
    path = os.pathsep.join([str(folder)] * folder.is_dir() + [os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", "import ffcv.loader, ffcv.writer"],
        env=environment,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    if found.returncode:
        reason = "the real ffcv is not installed; .ci/install_ffcv.sh does it"
        if os.environ.get("COARLIB_REQUIRE_FFCV") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return environment


@pytest.fixture(scope="session")
def ffcv(ffcv_environment, tmp_path_factory):
    """Run jobs of ffcv_child.py."""

    def run(jobs):
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps(jobs, default=str), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, CHILD, file],
                env=ffcv_environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"ffcv did not finish {len(jobs)} jobs in {SECONDS} s")
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def load(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def sample(name):
    """Source arrays of a schema with a row number to recognise rows by."""
    fields = {**SCHEMAS[name], "idx": beton.Int()}
    source = random_values(fields, ROWS.get(name, 700))
    source["idx"] = np.arange(len(source["idx"]))
    return fields, source


@pytest.fixture(scope="session")
def read_back(ffcv, tmp_path_factory):
    """{(schema, order, os_cache): what ffcv's Loader read from our file}, and the sources."""
    folder = tmp_path_factory.mktemp("ours")
    jobs, sources, paths = {}, {}, {}
    for number, name in enumerate(SCHEMAS):
        fields, sources[name] = sample(name)
        # Default pages and the smallest in turn, so that many pages and odd tails occur.
        page_size = PAGE_SIZE if number % 2 or name == "megabyte rows" else None
        paths[name] = beton.write(
            folder / f"{number}.beton", fields, sources[name], page_size=page_size, quiet=True
        )
    for number, (name, order, os_cache) in enumerate(WAYS):
        jobs[name, order, os_cache] = {
            "do": "read",
            "path": paths[name],
            "order": order,
            "os_cache": os_cache,
            "batch_size": 7 if name == "megabyte rows" else 64,
            "out": folder / f"{number}.npz",
        }
    ffcv(list(jobs.values()))
    return {key: load(job["out"]) for key, job in jobs.items()}, sources


@pytest.mark.parametrize(("name", "order", "os_cache"), WAYS)
def test_ffcv_reads_our_files_bit_for_bit(read_back, name, order, os_cache):
    read, sources = read_back
    got, want = read[name, order, os_cache], sources[name]
    rows = got["idx"].reshape(-1)
    assert sorted(rows.tolist()) == want["idx"].tolist()
    assert (order == "SEQUENTIAL") == (rows.tolist() == want["idx"].tolist())
    for field, values in want.items():
        assert got[field].dtype == values.dtype
        assert got[field].reshape(values.shape).tobytes() == values[rows].tobytes(), field


@pytest.fixture(scope="session")
def ffcv_files(ffcv, tmp_path_factory):
    """{(schema, workers): (file that ffcv wrote, source)}."""
    folder = tmp_path_factory.mktemp("theirs")
    jobs, files = [], {}
    for number, name in enumerate(SCHEMAS):
        _, source = sample(name)
        if name == "scalars only":
            source["idx"] -= 5
        np.savez(folder / f"{number}.npz", **source)
        for workers in (1, 2):
            out = folder / f"{number}-{workers}.beton"
            jobs.append(
                {
                    "do": "write",
                    "source": folder / f"{number}.npz",
                    "out": out,
                    "page_size": PAGE_SIZE,
                    "workers": workers,
                    "chunksize": 5 if name == "megabyte rows" else 100,
                }
            )
            files[name, workers] = out, source
    ffcv(jobs)
    return files


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", SCHEMAS)
def test_we_read_ffcvs_files_bit_for_bit(ffcv_files, name, workers):
    path, source = ffcv_files[name, workers]
    order = np.random.default_rng(0).permutation(len(source["idx"]))
    with beton.open(path) as file:
        whole, shuffled = file.rows(slice(None)), file.rows(order)
        covered = 0
        for where, views in file.views():
            covered += where.stop - where.start
            for field, values in views.items():
                assert values.tobytes() == source[field][where].tobytes()
    assert covered == len(order)
    for field, values in source.items():
        assert whole[field].dtype == values.dtype
        assert whole[field].tobytes() == values.tobytes()
        assert shuffled[field].tobytes() == values[order].tobytes()


@pytest.mark.parametrize("name", SCHEMAS)
def test_our_file_is_ffcvs_byte_for_byte_up_to_the_residue_of_pages(ffcv_files, name, tmp_path):
    theirs, source = ffcv_files[name, 1]
    fields = {**SCHEMAS[name], "idx": beton.Int()}
    ours = beton.write(tmp_path / "x.beton", fields, source, page_size=PAGE_SIZE, quiet=True)
    a, b = (np.fromfile(path, np.uint8) for path in (ours, theirs))
    assert a.size == b.size
    with beton.open(ours) as file:
        layout = file.layout
    # ffcv leaves bytes of the row that did not fit in the tail of a page; ours are zero.
    place = np.arange(a.size)
    in_pages = (place >= layout.data_start) & (place < layout.packed_table_start)
    used = layout.rows_per_page * layout.row_bytes
    residue = in_pages & ((place - layout.data_start) % layout.page_size >= used)
    assert (a == b)[~residue].all()
    assert not a[residue].any()


def test_write_dataset_then_ffcvs_loader_gives_every_row(ffcv, command, tmp_path):
    rng = np.random.default_rng(5)
    store = tmp_path / "store"
    store.mkdir()
    arrays = {
        "masks": rng.random((500, 2304)) < 0.95,
        "test_margins": rng.standard_normal((500, 1000)).astype(np.float16) * 9,
        "_completed": rng.random(500) < 0.6,
    }
    for name, array in arrays.items():
        np.save(store / f"{name}.npy", array)
    out = tmp_path / "x.beton"
    result = command(
        "write_dataset",
        *("--cfg.data_dir", store, "--cfg.out_path", out),
        *("--cfg.x_name", "masks", "--cfg.y_name", "test_margins"),
        cwd=Path(beton.__file__).parents[2] / "estimate",
    )
    assert result.returncode == 0, result.stderr
    read = {
        order: {
            "do": "read",
            "path": out,
            "order": order,
            "os_cache": True,
            "batch_size": 100,
            "out": tmp_path / f"{order}.npz",
        }
        for order in ORDERS
    }
    ffcv(list(read.values()))
    done = np.flatnonzero(arrays["_completed"])
    for order, job in read.items():
        got = load(job["out"])
        rows = got["idx"].reshape(-1)
        assert (rows if order == "SEQUENTIAL" else np.sort(rows)).tolist() == done.tolist()
        assert (got["mask"] == arrays["masks"][rows]).all()
        assert got["targets"].dtype == np.float32
        assert (got["targets"] == arrays["test_margins"][rows].astype(np.float32)).all()


def test_ffcv_loader_gives_upstreams_batches(ffcv, coar_file, tmp_path):
    path, source = coar_file
    rows = np.arange(20, 300)
    cases = {
        "all": {"batch_size": 64, "order": "sequential", "drop_last": False},
        "part": {"batch_size": 40, "indices": rows.tolist(), "target_slice": [3, -2]},
        "quasi": {"batch_size": 64, "order": "quasi_random", "os_cache": False},
    }
    ffcv(
        [
            {"do": "loader", "path": path, "arguments": arguments, "out": tmp_path / f"{name}.npz"}
            for name, arguments in cases.items()
        ]
    )
    whole, part, quasi = (load(tmp_path / f"{name}.npz") for name in cases)
    for field, values in source.items():
        assert whole[field].tobytes() == values.tobytes()
        assert whole[field].shape == values.shape
    assert len(quasi["idx"]) == 256
    place = {number: row for row, number in enumerate(source["idx"].tolist())}
    chosen = [place[number] for number in part["idx"].tolist()]
    assert sorted(chosen) == rows.tolist()
    assert chosen != rows.tolist()
    assert (part["mask"] == source["mask"][chosen]).all()
    assert (part["targets"] == source["targets"][chosen][:, 3:-2]).all()

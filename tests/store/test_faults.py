"""What clusters do to a worker, done for real: the store loses nothing and says what happened."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from paths import ROOT
from store.faults import (
    eio_shim,
    mounted,
    one_sentence,
    run_worker,
    start_worker,
    wait_until,
)
from zoo.linear_task import true_weights

from coarlib.store import RowWriter, Store, initialize, provenance
from coarlib.store.checksum import row_checksums
from coarlib.store.grow import grow
from coarlib.store.layout import array_path
from coarlib.store.provenance import batch_of, read_batches
from coarlib.store.spec import parse_spec
from coarlib.store.status import status
from coarlib.store.verify import verify


def assert_full_and_right(store):
    store = Store.open(store.path)
    rows = np.arange(store.num_models)
    assert store.completed_rows().tolist() == rows.tolist()
    assert verify(store).sound
    masks = store.draw_masks(store.design, rows)
    width = store.spec.schema["margins"].shape[0]
    expected = (masks @ true_weights(masks.shape[1], width) + 1).astype(np.float16)
    assert (store.array("masks") == masks).all()
    assert (store.array("margins") == expected).all()


def test_no_space_in_the_middle_of_a_row(tmp_path, spec_content):
    spec_content["schema"]["masks"]["shape"] = [30_000]
    spec_content["num_models"] = 20
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        initialize(tmp_path / "store", parse_spec(json.dumps(spec_content)))
        store = Store.open(tmp_path / "store")
        (tmp_path / "ballast").write_bytes(bytes(700_000))
        sentence = one_sentence(run_worker(store, "--expt.rows_per_batch", 2))
        assert "No space left on device" in sentence
        assert 0 < len(store.completed_rows()) < 20
        assert not verify(store).torn
        assert "No space left" in one_sentence(run_worker(store, "--expt.claim", 1))
        (tmp_path / "ballast").unlink()
        done = run_worker(store, "--expt.rows_per_batch", 2)
        assert done.returncode == 0, done.stderr
        assert_full_and_right(store)


@pytest.mark.parametrize("fails_at", [2, 3, 4], ids=["bytes", "checksum", "flag"])
def test_an_io_error_in_the_middle_of_a_row(store, tmp_path, fails_at):
    shim = {"LD_PRELOAD": eio_shim(tmp_path), "COARLIB_FAIL_UNDER": str(store.path)}
    failed = run_worker(store, COARLIB_FAIL_AT=str(fails_at), **shim)
    sentence = one_sentence(failed)
    assert "Input/output error" in sentence
    assert "run the same command again" in sentence
    assert not verify(store).torn
    assert run_worker(store).returncode == 0
    assert_full_and_right(store)


@pytest.mark.parametrize("claim", [0, 1])
def test_a_read_only_directory(store, claim):
    with mounted(store.path, "--bind", store.path):
        subprocess.run(["mount", "-o", "remount,ro,bind", store.path], check=True)
        assert "Read-only file system" in one_sentence(run_worker(store, "--expt.claim", claim))
        assert status(Store.open(store.path)).missing == 24
        assert verify(Store.open(store.path)).sound
    assert run_worker(store, "--expt.claim", claim).returncode == 0
    assert_full_and_right(store)


@pytest.mark.parametrize(
    ("loss", "claim"), [("removed", 0), ("removed", 1), ("renamed", 0), ("replaced", 1)]
)
def test_a_directory_lost_under_a_running_worker(store, tmp_path, loss, claim):
    slow = ("--expt.task_args", '{"seconds": 0.4}', "--expt.rows_per_batch", 1)
    worker = start_worker(store, *slow, "--expt.claim", claim)
    wait_until(lambda: len(store.completed_rows()) >= 2)
    shutil.move(store.path, tmp_path / "elsewhere")
    if loss == "removed":
        shutil.rmtree(tmp_path / "elsewhere")
    if loss == "replaced":
        initialize(store.path, store.spec)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert len(errors.splitlines()) == 1
    assert str(store.path) in errors
    if loss == "replaced":
        assert len(store.completed_rows()) == 0
        assert not store.array("margins").any()
    if loss != "removed":
        assert verify(Store.open(tmp_path / "elsewhere")).sound if loss == "renamed" else True


@pytest.mark.parametrize("claim", [0, 1])
def test_a_time_limit_as_slurm_enforces_it(store, claim):
    """A warning signal, and SIGKILL when the grace is over; then the requeued job."""
    slow = ("--expt.task_args", '{"seconds": 0.3}', "--expt.rows_per_batch", 2)
    more = ("--expt.claim", claim, "--expt.claim_ttl", 2)
    worker = start_worker(store, *slow, *more)
    wait_until(lambda: len(store.completed_rows()) >= 2)
    worker.send_signal(signal.SIGUSR1)
    output, errors = worker.communicate(timeout=60)
    assert worker.returncode == 75, errors
    assert "run the same command for the rest" in output
    worker = start_worker(store, "--expt.task_args", '{"seconds": 60}', *more)
    before = len(store.completed_rows())
    wait_until(lambda: len(list((store.path / "workers").iterdir())) == 2)
    worker.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    worker.kill()  # the grace was too short for the row in hand
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    assert len(store.completed_rows()) == before
    assert run_worker(store, *more).returncode == 0
    assert_full_and_right(store)


def test_a_signal_while_the_model_is_loaded_is_a_clean_stop(store, tmp_path, monkeypatch):
    (tmp_path / "slow_start.py").write_text(
        "import time\nfrom pathlib import Path\nfrom zoo.linear_task import LinearTask\n"
        "class Slow(LinearTask):\n"
        "    def prepare(self, device):\n"
        f"        Path({str(tmp_path / 'started')!r}).touch()\n"
        "        time.sleep(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    worker = start_worker(store, "--expt.task", tmp_path / "slow_start.py:Slow")
    wait_until((tmp_path / "started").exists)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 75, errors
    assert len(store.completed_rows()) == 0


@pytest.mark.parametrize("skew", [-(10**6), 10**6])
def test_a_worker_whose_clock_is_far_off(store, monkeypatch, skew):
    """Neither rows nor what status shows depend on clocks that agree."""
    code = (
        "import time; real = time.time; time.time = lambda: real() + "
        f"{skew}; import sys, runpy; sys.argv = ['x', *sys.argv[1:]];"
        "runpy.run_module('coarlib.commands.store.make_dataset', run_name='__main__')"
    )
    right = start_worker(store, "--expt.claim", 1, "--expt.task_args", '{"seconds": 0.1}')
    words = [right.args[0], "-c", code, *right.args[3:]]
    wrong = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    written = []
    for worker in (right, wrong):
        output, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        written.append(int(output.split()[0]) if output[:1] not in ("", b"") else 0)
    assert sum(written) == 24
    assert_full_and_right(store)
    assert 0 < status(store).rows_per_second < 10**4
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + skew)
    assert status(store).rows_per_second > 0


def test_kill_minus_9_while_claiming_and_growing(store):
    """Workers are killed at random moments while the store grows; rows are only added."""
    rng = np.random.default_rng(0)
    slow = ("--expt.claim", 1, "--expt.rows_per_batch", 2, "--expt.task_args", '{"seconds": 0.05}')
    done_before = set()
    for size in (40, 60, 80):
        workers = [start_worker(store, *slow) for _ in range(2)]
        claims = store.path / "claims"
        wait_until(lambda where=claims: any(where.glob("*/*.0")))
        grow(store, size)
        time.sleep(float(rng.random()) * 0.4)
        for worker in workers:
            worker.kill()
            worker.communicate()
        store = Store.open(store.path)
        done = set(store.completed_rows().tolist())
        assert done_before <= done
        assert verify(store).torn == []
        done_before = done
    assert store.num_models == 80
    finished = run_worker(store, "--expt.claim", 1)
    assert finished.returncode == 0, finished.stderr
    assert_full_and_right(store)


def test_readers_and_claims_while_the_store_grows_again_and_again(store, make_rows):
    with RowWriter(store) as writer:
        writer.write(np.arange(24), make_rows(store, np.arange(24)))
    pid = os.fork()
    if pid == 0:
        for size in range(30, 3000, 30):
            grow(store, size)
        os._exit(0)
    sizes = set()
    while not os.waitpid(pid, os.WNOHANG)[0]:
        opened = Store.open(store.path)
        assert opened.completed_rows().tolist() == list(range(24))
        sizes.add(opened.num_models)
    assert Store.open(store.path).num_models == 2970
    assert len(sizes) > 2
    assert verify(Store.open(store.path)).sound


def _recorded_writes(store, rows, arrays, monkeypatch):
    writes, real = [], os.pwrite

    def record(descriptor, data, offset):
        writes.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, bytes(data)))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", record)
    with RowWriter(store) as writer:
        writer.write(rows, arrays)
    monkeypatch.setattr(os, "pwrite", real)
    return writes


def test_two_live_workers_on_one_batch_with_values_that_differ(store, make_rows, monkeypatch):
    """All interleavings of the writes of a frozen node and its replacement, cut anywhere."""
    rows = np.array([3, 4])
    versions = [make_rows(store, rows)]
    versions.append({key: np.roll(value, 1, axis=-1) for key, value in versions[0].items()})
    versions[1]["margins"] = versions[1]["margins"] + np.float16(0.25)
    empty = {path: path.read_bytes() for path in store.path.glob("*.npy")}
    recorded = []
    for version in versions:
        for path, content in empty.items():
            path.write_bytes(content)
        recorded.append(_recorded_writes(store, rows, version, monkeypatch))
    assert [len(writes) for writes in recorded] == [4, 4]
    digests = {int(d) for version in versions for d in row_checksums(rows, version)}
    mixtures = 0
    swapped = [*recorded[1][1::-1], *recorded[1][2:]]  # within a step the order is free
    for first, second in itertools.product(
        itertools.combinations(range(8), 4), (recorded[1], swapped)
    ):
        turns = [0 if moment in first else 1 for moment in range(8)]
        queues = [iter(recorded[0]), iter(second)]
        for path, content in empty.items():
            path.write_bytes(content)
        for turn in turns:
            name, offset, data = next(queues[turn])
            with open(name, "r+b") as file:
                file.seek(offset)
                file.write(data)
            mixtures += _check_accepted(store, rows, versions, digests)
    assert mixtures > 0  # the test can fail: mixtures do arise, and each is told by its checksum


def _check_accepted(store, rows, versions, digests):
    """Rows that a verifying reader accepts hold one version in full; count the others."""
    stored = {key: np.array(store.array(key)[rows]) for key in store.spec.schema}
    claimed = store.checksums()[rows]
    found = row_checksums(rows, stored)
    mixtures = 0
    for position in range(len(rows)):
        if not claimed[position]:
            continue
        assert int(claimed[position]) in digests
        whole = any(
            all((stored[key][position] == version[key][position]).all() for key in stored)
            for version in versions
        )
        if found[position] == claimed[position]:
            assert whole
        mixtures += not whole
    return mixtures


def test_two_live_processes_on_the_same_rows_with_values_that_differ(store, make_rows):
    rows = np.arange(24)
    for _ in range(3):
        children = []
        for shift in (0.0, 0.25):
            pid = os.fork()
            if pid == 0:
                arrays = make_rows(store, rows)
                arrays["margins"] = arrays["margins"] + np.float16(shift)
                with RowWriter(store) as writer:
                    for first in range(0, 24, 3):
                        part = slice(first, first + 3)
                        writer.write(rows[part], {k: v[part] for k, v in arrays.items()})
                os._exit(0)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        torn = set(verify(store, repair=True).torn)
        assert torn.isdisjoint(store.completed_rows().tolist())
        base = make_rows(store, rows)["margins"]
        for row in store.completed_rows():
            stored = store.array("margins")[row]
            assert (stored == base[row]).all() or (stored == base[row] + np.float16(0.25)).all()


def test_the_author_of_a_row_is_the_one_whose_bytes_stand_there(store):
    """Two logs name a row; the checksum tells whose it is, not the clocks."""
    assert run_worker(store).returncode == 0
    (log,) = (store.path / "workers").glob("*.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    records[0]["worker"] = "impostor"
    for record in records[1:-1]:  # of a clock that is ahead, and with other values
        record["started"] += 10**6
        record["digests"] = ["0" * 16] * len(record["digests"])
    for record in records:
        record.pop("digest", None)
    text = b"".join(provenance._line(record) for record in records)
    (store.path / "workers" / "impostor.jsonl").write_bytes(text)
    assert len(list(read_batches(store.path))) == 12
    assert batch_of(store.path, 5).worker["worker"] == log.stem


def test_a_truncated_array_is_named(store):
    path = array_path(store.path, "margins")
    os.truncate(path, path.stat().st_size - 3)
    assert "margins.npy is truncated" in one_sentence(run_worker(store))

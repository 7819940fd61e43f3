"""Claims: no block has two living owners, none is lost, no two clocks are compared."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT

from coarlib.store import RowWriter, Store
from coarlib.store.claims import Claims, settle_block_rows
from coarlib.store.pieces import Pace
from coarlib.store.processes import process_identity
from coarlib.store.verify import verify

TASK = ROOT / "tests" / "zoo" / "linear_task.py"


@pytest.fixture
def foreign(monkeypatch):
    """Make claims look as if they came from another machine, so that only time can tell."""
    monkeypatch.setattr("coarlib.store.claims.process_identity", lambda pid: {"system": None})


def start(store, *more):
    arguments = ["--expt.base_dir", store.path, "--expt.task", TASK, "--expt.claim", 1, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "estimate.make_dataset", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(what):
    for _ in range(800):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("in vain")


def test_blocks_are_shared_out_without_overlap(store):
    rows = np.arange(24)
    taken = []
    with Claims(store, 5) as one, Claims(store, 5) as two:
        for claims in (one, two, one, two, one):
            taken.append(claims.next_rows(rows))
        assert one.next_rows(rows) is None
    assert sorted(np.concatenate(taken).tolist()) == rows.tolist()


def test_only_blocks_with_open_rows_are_claimed(store):
    with Claims(store, 5) as claims:
        assert claims.next_rows(np.array([7, 9, 23])).tolist() in ([7, 9], [23])
        assert claims.next_rows(np.empty(0, np.int64)) is None


@pytest.mark.usefixtures("foreign")
def test_a_silent_owner_is_replaced_after_the_ttl_on_the_observers_clock(store):
    dead = Claims(store, 24, ttl=0.4)
    assert dead.next_rows(np.arange(24)) is not None  # never entered: no heartbeat
    with Claims(store, 24, ttl=0.4) as observer:
        assert observer.next_rows(np.arange(24)) is None  # first sight starts the clock
        time.sleep(0.2)
        assert observer.next_rows(np.arange(24)) is None
        time.sleep(0.3)
        assert observer.next_rows(np.arange(24)) is not None
        assert observer.taken_over == 1
    assert sorted(file.name for file in (store.path / "claims" / "0").iterdir()) == [
        "0.0",
        "0.1",
        "0.1.free",
    ]


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("skew", [-(10**6), 10**6])
def test_a_living_owner_keeps_its_block_whatever_its_clock_says(store, skew):
    with Claims(store, 24, ttl=0.6) as owner, Claims(store, 24, ttl=0.6) as observer:
        assert owner.next_rows(np.arange(24)) is not None
        file = store.path / "claims" / "0" / "0.0"
        for beat in range(12):  # a heartbeat of a clock that is far off
            moment = time.time() + skew + beat
            os.utime(file, (moment, moment))
            assert observer.next_rows(np.arange(1)) is None  # a row that cannot be cut
            time.sleep(0.1)


def test_a_released_block_is_free_at_once(store):
    with Claims(store, 24) as one:
        one.next_rows(np.arange(24))
    with Claims(store, 24) as two:
        assert two.next_rows(np.arange(24)) is not None
        assert two.taken_over == 0


def test_an_owner_that_died_on_this_machine_is_replaced_at_once(store):
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(ended.pid)
    if identity["system"] is None:
        pytest.skip("no /proc here, only time can tell")
    settle_block_rows(store, 24)
    (store.path / "claims" / "0").mkdir()
    (store.path / "claims" / "0" / "0.0").write_text(json.dumps(identity))
    with Claims(store, 24) as claims:
        assert claims.next_rows(np.arange(24)) is None
        ended.kill()
        ended.wait()
        ended.stdin.close()
        assert claims.next_rows(np.arange(24)) is not None


def test_the_first_worker_settles_the_block_size(store):
    assert settle_block_rows(store, 6) == 6
    assert settle_block_rows(store, 9) == 6


def test_many_processes_fill_each_row_once(store):
    workers = [start(store, "--expt.rows_per_batch", 2) for _ in range(4)]
    written = 0
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        written += int(output.split()[0])
    assert written == 24
    assert verify(store).sound
    assert len(store.completed_rows()) == 24


def test_a_living_workers_rest_is_cut_and_it_sees_so(store):
    with Claims(store, 24, pace=Pace(2)) as slow, Claims(store, 24, pace=Pace(2)) as quick:
        rest = slow.next_rows(np.arange(24))[2:]
        taken = quick.next_rows(np.arange(24))
        assert taken.tolist() == list(range(12, 24))
        assert slow.still_mine(rest).tolist() == list(range(2, 12))
        assert quick.still_mine(taken).tolist() == taken.tolist()


def test_the_last_row_is_doubled_after_twice_the_observers_time_and_not_too_often(store):
    with Claims(store, 2, pace=Pace(1)) as slow, Claims(store, 2, pace=Pace(1)) as quick:
        assert len(slow.next_rows(np.array([3]))) == 1
        quick.pace.did(1, 0.01)
        assert quick.next_rows(np.array([3])) is None
        time.sleep(1.1)
        assert quick.next_rows(np.array([3])).tolist() == [3]
        assert not len(slow.still_mine(np.array([3])))
        assert (quick.doubled, quick.taken_over) == (1, 0)
        slow.next_rows(np.array([9]))
        assert quick.next_rows(np.array([9])) is None
        time.sleep(1.1)
        assert quick.next_rows(np.array([9])) is None  # it has doubled one row and written none


def test_a_frozen_workers_rows_are_done_by_others_and_it_sees_so(store):
    frozen = start(store, "--expt.rows_per_batch", 1, "--expt.task_args", '{"seconds": 0.3}')
    wait_until(lambda: len(store.completed_rows()) >= 2)
    frozen.send_signal(signal.SIGSTOP)
    quick = start(store, "--expt.rows_per_batch", 1)
    _, errors = quick.communicate(timeout=120)  # long before the time-to-live
    assert quick.returncode == 0, errors
    assert len(store.completed_rows()) == 24
    frozen.send_signal(signal.SIGCONT)
    _, errors = frozen.communicate(timeout=120)
    assert frozen.returncode == 0, errors
    assert verify(store).sound


def test_a_killed_workers_block_is_taken_over(store):
    slow = start(store, "--expt.rows_per_batch", 4, "--expt.task_args", '{"seconds": 30}')
    wait_until(lambda: list((store.path / "claims").glob("*/*.0")))
    slow.send_signal(signal.SIGKILL)
    slow.communicate()
    done = start(store, "--expt.claim_ttl", 1)
    output, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert "1 blocks taken over" in output
    assert len(store.completed_rows()) == 24


def test_static_workers_beside_claiming_ones(store, make_rows):
    with RowWriter(store) as writer:
        writer.write(np.arange(4, 9), make_rows(store, np.arange(4, 9)))
    worker = start(store)
    output, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    assert "19 rows written" in output
    assert Store.open(store.path).completed_rows().tolist() == list(range(24))


def test_rows_that_are_refused_do_not_keep_a_claiming_worker_for_ever(store, command):
    bad = TASK.with_name("broken_tasks.py")
    done = command(
        "coarlib.commands.store.make_dataset",
        *("--expt.base_dir", store.path, "--expt.task", f"{bad}:SometimesBad"),
        *("--expt.claim", 1),
    )
    assert done.returncode == 2
    assert "3 rows were refused and 21 written" in done.stderr

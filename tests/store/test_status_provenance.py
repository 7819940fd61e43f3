"""What a user sees of a store: status, provenance, recomputation."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from paths import ROOT

from coarlib.cluster.overview import Overview
from coarlib.commands.store import provenance as provenance_command
from coarlib.commands.store import status as status_command
from coarlib.commands.store.make_dataset import main as make_dataset
from coarlib.errors import StoreError
from coarlib.store import RowWriter, Store
from coarlib.store.claims import Claims, settle_block_rows
from coarlib.store.provenance import batch_of
from coarlib.store.status import slurm_array, status

TASK = ROOT / "tests" / "zoo" / "linear_task.py"


@pytest.fixture
def filled(store, capsys):
    """Rows 0..9 filled by a real worker."""
    make_dataset([str(store.path), "--task", str(TASK), "--end_index", "10"])
    capsys.readouterr()
    return store


def test_counts_ranges_rate_and_size(filled, make_rows):
    with RowWriter(filled) as writer:
        writer.write(np.array([15]), make_rows(filled, np.array([15])))
    found = status(Store.open(filled.path))
    assert (found.complete, found.claimed, found.missing) == (11, 0, 13)
    assert found.missing_ranges == [(10, 15), (16, 24)]
    assert found.rows_per_second > 0
    assert found.workers == [] and found.eta_seconds is None
    assert 0 < found.bytes_on_disk <= found.bytes_when_full
    assert found.bytes_when_full >= 24 * filled.spec.row_bytes


def test_claimed_rows_and_living_workers(store):
    settle_block_rows(store, 6)
    with Claims(store, 6) as claims:
        claims.next_rows(np.arange(24))
        assert (status(store).claimed, status(store).missing) == (6, 18)
    assert status(store).claimed == 0


def test_rows_flagged_without_a_checksum_are_torn(filled):
    with open(filled.path / "_completed.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert status(filled).torn == 1


@pytest.mark.parametrize(
    ("missing", "size", "expected"),
    [
        ([(0, 1000)], 100, "0-9"),
        ([(5, 6), (99, 101), (950, 1000)], 100, "0-1,9"),
        ([(0, 3)], 1, "0-2"),
        ([], 10, ""),
    ],
)
def test_a_slurm_array_covers_what_is_missing(missing, size, expected):
    assert slurm_array(missing, size) == expected


def test_status_for_people_and_for_scripts(filled, command):
    people = command("estimate", "status", filled.path, "--rows_per_task", 4).stdout
    assert "10 of 24 rows complete (41.7%)" in people
    assert "rows to fill 10-23" in people
    assert "--array=2-5" in people
    scripts = json.loads(command("estimate", "status", filled.path, "--json").stdout)
    assert scripts["complete"] == 10
    assert scripts["missing_ranges"] == [[10, 24]]


def test_no_time_is_left_where_nobody_works(filled):
    found = status(filled)
    assert found.rows_per_second and not found.workers and found.eta_seconds is None
    alive = filled.path / "workers" / "someone-1-2.jsonl"  # no process: as alive as its file is new
    batch = {"rows": [[0, 1]], "started": time.time(), "seconds": 1.0, "digests": ["0" * 16]}
    alive.write_text(json.dumps({"worker": "someone-1-2", "host": "h"}) + "\n" + json.dumps(batch))
    found = status(filled)
    assert len(found.workers) == 1 and found.eta_seconds > 0


def test_status_exits_with_1_where_something_is_wrong(filled, capsys, monkeypatch):
    status_command.main([str(filled.path)])
    monkeypatch.setattr(status_command, "IDLE_SECONDS", 0.0)
    with pytest.raises(SystemExit, match="1"):
        status_command.main([str(filled.path), "--watch", "--interval", "0"])
    assert "nobody has worked on the 14 missing rows" in capsys.readouterr().out
    with open(filled.path / "_completed.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(SystemExit, match="1"):
        status_command.main([str(filled.path)])
    failed = Overview("jobs", failed=["one"])
    part, whole = status(filled), replace(status(filled), complete=24, torn=0)
    part = replace(part, torn=0)
    assert status_command._failed(part, failed) and not status_command._failed(whole, failed)
    failed.states = {"fill": {"RUNNING": 2}}
    assert not status_command._failed(part, failed)


def test_where_a_row_came_from(filled, command):
    batch = batch_of(filled.path, 5)
    assert batch.holds(5)
    assert batch.worker["task"]["task"] == str(TASK)
    assert batch.worker["task"]["identity"] == "linear-11"
    with pytest.raises(StoreError, match="has recorded row 20"):
        batch_of(filled.path, 20)
    shown = json.loads(command("estimate", "provenance", filled.path, 5, "--json").stdout)
    assert shown["row"] == 5
    assert shown["completed"]
    assert {"started", "seconds", "worker", "task", "versions"} <= set(shown)
    missing = command("estimate", "provenance", filled.path, 20)
    assert missing.returncode == 2


def test_a_log_cut_short_by_a_crash_is_still_read(filled):
    (log,) = (filled.path / "workers").glob("*.jsonl")
    log.write_bytes(log.read_bytes()[:-40])
    assert batch_of(filled.path, 0).holds(0)


def test_a_damaged_first_line_of_a_log_is_said(filled, capsys):
    (log,) = (filled.path / "workers").glob("*.jsonl")
    whole = log.read_bytes()
    for damaged in (whole.replace(b'"host"', b'"hosu"', 1), whole.replace(b'"worker"', b"\xff", 1)):
        log.write_bytes(damaged)
        provenance_command.main([str(filled.path), "5", "--json"])
        shown = capsys.readouterr()
        facts = json.loads(shown.out)
        assert facts["rows_of_batch"] == [[4, 8]] and facts["completed"] and "task" not in facts
        assert f"the first line of {log} is damaged" in shown.err and shown.err.count("\n") == 1
    log.write_bytes(whole)
    provenance_command.main([str(filled.path), "5", "--json"])
    assert capsys.readouterr().err == ""
    log.write_bytes(whole.replace(b'{"rows"', b'{"rowt"'))
    with pytest.raises(
        StoreError, match=rf"recorded row 5; damaged lines.*: 3, the first is {log}:2"
    ):
        provenance_command.main([str(filled.path), "5"])


def test_recomputing_a_row(filled, command):
    refused = command("estimate", "recompute", filled.path, 3)
    assert refused.returncode == 2 and "does not choose what code runs" in refused.stderr
    same = command("estimate", "recompute", filled.path, 3, "--task", TASK)
    assert same.returncode == 0, same.stderr
    assert "is what the task computes" in same.stdout
    values = np.array(filled.array("margins")[3:4]) + np.float16(0.5)
    with RowWriter(filled) as writer:
        writer.write(
            np.array([3]), {"masks": np.array(filled.array("masks")[3:4]), "margins": values}
        )
    differs = command("estimate", "recompute", filled.path, 3, "--task", TASK)
    assert differs.returncode == 1
    assert "differs by more than the task's tolerance" in differs.stdout
    assert (filled.array("margins")[3] == values[0]).all()
    assert command("estimate", "recompute", filled.path, 20).returncode == 2

"""Everything that goes wrong on a real cluster, in one array: nothing is lost."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from coarlib.store import Store
from coarlib.store.provenance import read_batches
from coarlib.store.verify import verify
from estimate.digits.model import load_or_train

SLOW, HOLD, FAST = "2", "hold", "0"
NUM_BLOCKS, ROWS_PER_JOB = 8, 100


def plan_for(directory, **changes):
    (directory / "fit.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"num_train": 600, "num_val": 100, "y_name": "test_margins"},
                "cfg": {"k": 1, "manual_max_lambda": 0, "device": "cpu"},
            }
        )
    )
    store, fit = directory / "store", directory / "attributions"
    content = {
        "store": str(store),
        "spec": "specs/digits_test.json",
        "task": "tests/zoo/paced_digits.py:PacedDigits",
        "task_args": {"model_path": str(directory / "model.pt"), "pace": str(directory / "pace")},
        "worker_args": {"device": "cpu"},
        "rows_per_job": ROWS_PER_JOB,
        "warn_seconds": 30,
        "tries": 3,
        "resources": {"time": "10", "partition": "low"},
        "then": [
            {
                "name": "fit",
                "run": f"run_regression --config {directory / 'fit.yaml'} --data.data_path {store} "
                f"--cfg.out_dir {fit}",
                "creates": str(fit / "datamodels.pt"),
            },
            {
                "name": "score",
                "run": f"score_lds --data.store {store} --data.scores {fit} --data.rows 700:800 "
                f"--cfg.out {directory / 'lds.json'}",
            },
            {
                "name": "report",
                "run": f"report {directory} --quiet",
                "creates": str(directory / "report.html"),
            },
        ],
        **changes,
    }
    (directory / "plan.yaml").write_text(yaml.safe_dump(content))
    return directory / "plan.yaml"


def worker_of(block):
    """The process that fills a block on this machine."""
    wanted = f"--rows {block * ROWS_PER_JOB}:"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "coarlib make_dataset" in words and wanted in words and "python" in words.split()[0]:
            found.append(int(entry.name))
    return found


def copies_waiting(directory, block):
    """How many workers of a block are held before a batch."""
    return sum((directory / f"waiting.{pid}").exists() for pid in worker_of(block))


def blocks_begun(store):
    return {start // ROWS_PER_JOB for batch in read_batches(store) for start, _ in batch.ranges}


def times_written(store):
    counts = np.zeros(NUM_BLOCKS * ROWS_PER_JOB, int)
    for batch in read_batches(store):
        for start, stop in batch.ranges:
            counts[start:stop] += 1
    return counts


@pytest.mark.timeout(420)
def test_an_array_survives_all_that_a_cluster_does_to_it(slurm, coar, tmp_path):
    load_or_train(tmp_path / "model.pt")
    pace = tmp_path / "pace"
    pace.write_text(SLOW)
    plan, store = plan_for(tmp_path), tmp_path / "store"
    coar("submit", plan)
    jobs = [json.loads(line) for line in (tmp_path / "store.jobs/jobs.jsonl").open()]
    fill, _ = (job["job"] for job in jobs)
    slurm.wait(lambda: len(blocks_begun(store)) == NUM_BLOCKS, 90, "a first batch of every job")
    nodes = {int(task): node for task, (_, node) in slurm.states(fill).items()}
    on_first = sorted(task for task, node in nodes.items() if node == "n1")
    on_second = sorted(task for task, node in nodes.items() if node == "n2")
    assert len(on_first) == len(on_second) == 4
    cancelled, requeued, killed, hung = on_first

    # One hangs for good (it cannot hear its warning): SLURM ends it at the time limit.
    (pid,) = worker_of(hung)
    os.kill(pid, signal.SIGSTOP)
    slurm("scontrol", "update", f"jobid={fill}_{hung}", "timelimit=1")
    # Another is warned of its limit: it finishes the rows in hand and goes back to the queue.
    warned = on_second[0]
    slurm("scontrol", "update", f"jobid={fill}_{warned}", "timelimit=1")
    slurm("scancel", f"{fill}_{cancelled}")
    slurm("scontrol", "requeue", f"{fill}_{requeued}")
    (pid,) = worker_of(killed)
    os.kill(pid, signal.SIGKILL)
    slurm.wait(
        lambda: (
            slurm.states(fill)[str(cancelled)][0] == "CANCELLED"
            and slurm.states(fill)[str(killed)][0] == "FAILED"
        ),
        30,
        "the ends of the cancelled and the killed task",
    )
    status = coar("status", store)
    assert "pending (Dependency)" in status.replace("verify  1 ", "")
    assert f"fill {fill}_{killed} failed" in status and "Killed" in coar("logs", store, "--failed")

    slurm.wait(lambda: "requeueing" in log_of(store, fill, warned), 90, "a warning")
    slurm("scontrol", "update", f"jobid={fill}_{warned}", "timelimit=10")
    slurm.wait(
        lambda: [node for _, node in slurm.states(fill).values()].count("n2") >= 4,
        60,
        "a full second node",
    )

    # A higher partition takes CPUs: its victims finish their rows and go back to the queue.
    high = slurm(
        "sbatch",
        "--parsable",
        "-p",
        "high",
        "-w",
        "n2",
        "-c",
        "2",
        "--wrap",
        "sleep 2",
        "-o",
        "/dev/null",
    )
    slurm.wait(
        lambda: "COMPLETED" in slurm("squeue", "-h", "-t", "all", "-j", high, "-o", "%T"),
        60,
        "the preempting job",
    )
    preempted = [task for task in on_second[1:] if "requeueing" in log_of(store, fill, task)]
    assert len(preempted) >= 1

    # A frozen node daemon: its tasks start on the other node while the first copies go on.
    slurm.wait(
        lambda: any(
            node == "n2" and state == "RUNNING" for state, node in slurm.states(fill).values()
        ),
        60,
        "a task on n2",
    )
    frozen = [
        int(task)
        for task, (state, node) in slurm.states(fill).items()
        if node == "n2" and state == "RUNNING"
    ]
    pace.write_text(HOLD)
    os.kill(slurm.daemon("n2"), signal.SIGSTOP)
    try:
        slurm.wait(
            lambda: any(copies_waiting(tmp_path, task) == 2 for task in frozen),
            120,
            "two live copies of a task at the same row",
        )
        pace.write_text(FAST)
        slurm.wait(lambda: (times_written(store) > 1).any(), 60, "a row written by two copies")
    finally:
        pace.write_text(FAST)
        os.kill(slurm.daemon("n2"), signal.SIGCONT)

    def done():
        # The thawed node may get a task whose first copy it still runs: SLURM then drains the
        # node and holds the task until someone sets both right.
        slurm.set_right()
        return (tmp_path / "report.html").exists()

    slurm.wait(done, 200, "the last dependent job")
    assert slurm.states(fill)[str(hung)][0] == "TIMEOUT"
    found = Store.open(store)
    assert len(found.completed_rows()) == NUM_BLOCKS * ROWS_PER_JOB
    assert verify(found).sound
    # Only what was missing was submitted again.
    second = (tmp_path / "store.jobs/round-2/fill.sbatch").read_text()
    array = next(line for line in second.splitlines() if "--array" in line)
    assert set(map(str, (cancelled, killed, hung))) <= set(expand(array.split("=")[1]))
    assert not (tmp_path / "store.jobs/round-4").exists()
    assert (tmp_path / "attributions/datamodels.pt").exists()
    assert json.loads((tmp_path / "lds.json").read_text())["mean"] > 0.3


def expand(indices):
    for part in indices.split(","):
        first, _, last = part.partition("-")
        yield from map(str, range(int(first), int(last or first) + 1))


def log_of(store, job, task):
    return (store.with_name("store.jobs") / f"logs/fill-{job}_{task}.log").read_text()

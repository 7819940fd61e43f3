"""A plan as processes on this machine: the same store, bit for bit, and the same care."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from coarlib.store import Store
from coarlib.store.verify import verify
from estimate.digits.model import load_or_train

SPEC = {
    "num_models": 240,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [10]},
        "margins": {"dtype": "float32", "shape": [3]},
    },
    "design": {"kind": "bernoulli", "keep_prob": 0.8, "seed": 1},
}


@pytest.fixture
def plan_file(tmp_path):
    """Write a plan for the linear task; keywords change it."""

    def write(**changes):
        (tmp_path / "spec.json").write_text(json.dumps(SPEC))
        content = {
            "store": str(tmp_path / "store"),
            "spec": str(tmp_path / "spec.json"),
            "task": "tests/zoo/linear_task.py:LinearTask",
            "rows_per_job": 40,
            **changes,
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "plan.yaml"

    return write


def same(one, other):
    one, other = Store.open(one), Store.open(other)
    assert len(one.completed_rows()) == len(other.completed_rows()) == one.num_models
    assert (one.checksums() == other.checksums()).all()
    return all(
        np.array_equal(one.array(key), other.array(key), equal_nan=True) for key in one.spec.schema
    )


def test_four_processes_fill_the_same_store_as_one(command, plan_file, tmp_path):
    result = command("estimate.submit", plan_file(), "--local", 4)
    assert result.returncode == 0, result.stderr
    command(
        "estimate.initialize_store",
        "--logging.logdir", tmp_path / "one", "--logging.spec", tmp_path / "spec.json",
    )  # fmt: skip
    command(
        "estimate.make_dataset",
        "--expt.base_dir", tmp_path / "one", "--expt.task", "tests/zoo/linear_task.py:LinearTask",
    )  # fmt: skip
    assert same(tmp_path / "store", tmp_path / "one")
    again = command("estimate.submit", plan_file(), "--local", 4)
    assert again.returncode == 0 and "240 rows verified" in again.stdout


def test_the_digits_set_up_gives_the_same_bits(command, plan_file, tmp_path, project_root):
    load_or_train(tmp_path / "model.pt")
    spec = json.loads((project_root / "specs/digits_test.json").read_text())
    (tmp_path / "digits.json").write_text(json.dumps({**spec, "num_models": 40}))
    for name, processes, rows in (("four", 4, 10), ("one", 1, 40)):
        plan = plan_file(
            store=str(tmp_path / name),
            spec=str(tmp_path / "digits.json"),
            task="estimate.digits.make_dataset",
            task_args={"model_path": str(tmp_path / "model.pt")},
            worker_args={"device": "cpu"},
            rows_per_job=rows,
        )
        result = command("estimate.submit", plan, "--local", processes)
        assert result.returncode == 0, result.stderr
    assert same(tmp_path / "four", tmp_path / "one")


def test_steps_run_in_turn_and_are_passed_over_when_done(command, plan_file, tmp_path):
    steps = [
        {"name": "check", "run": f"verify {tmp_path / 'store'}", "creates": str(tmp_path / "no")},
        {"name": "show", "run": f"status {tmp_path / 'store'}", "array": 2},
    ]
    result = command("estimate.submit", plan_file(then=steps), "--local", 2)
    assert result.returncode == 0, result.stderr
    assert "check: no row is torn" in result.stdout
    (tmp_path / "no").touch()
    again = command("estimate.submit", plan_file(then=steps), "--local", 2)
    assert "is there: nothing to do" in again.stdout


def test_a_step_that_fails_says_why(command, plan_file, tmp_path):
    steps = [{"name": "fit", "run": f"verify {tmp_path / 'elsewhere'}"}]
    result = command("estimate.submit", plan_file(then=steps), "--local", 2)
    assert result.returncode == 2
    assert (
        "the step fit failed" in result.stderr and "elsewhere is not a directory" in result.stderr
    )


def test_tries_are_bounded_and_the_error_is_the_tasks(command, plan_file, tmp_path):
    plan = plan_file(task="tests/zoo/broken_tasks.py:SometimesBad", tries=2)
    result = command("estimate.submit", plan, "--local", 2)
    assert result.returncode == 2
    assert "still missing after 2 tries" in result.stderr and "row 5" in result.stderr
    assert len(list((tmp_path / "store.jobs").glob("round-*"))) == 2


def test_a_signal_stops_it_cleanly_and_the_same_command_goes_on(plan_file, tmp_path, project_root):
    words = [sys.executable, "-m", "estimate.submit", str(plan_file(task_args={"seconds": 0.3}))]
    process = subprocess.Popen([*words, "--local", "2"], cwd=project_root, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (tmp_path / "store").exists() and len(Store.open(tmp_path / "store").completed_rows()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    process.stderr.close()
    before = len(Store.open(tmp_path / "store").completed_rows())
    assert 0 < before < 240 and verify(Store.open(tmp_path / "store")).sound
    plan_file(task_args={"seconds": 0})
    assert subprocess.run([*words, "--local", "2"], cwd=project_root, check=False).returncode == 0
    assert len(Store.open(tmp_path / "store").completed_rows()) == 240


def test_a_dry_run_prints_all_scripts_and_touches_nothing(command, plan_file, tmp_path):
    steps = [{"name": "fit", "run": "run_regression"}]
    result = command("estimate.submit", plan_file(then=steps), "--dry-run")
    assert result.returncode == 0, result.stderr
    for words in (
        "round-1/fill.sbatch",
        "--array=0-5",
        "round-1/verify.sbatch",
        "then-1/fit.sbatch",
    ):
        assert words in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "spec.json"]


def test_without_slurm_one_sentence_says_what_to_do(command, plan_file):
    nowhere = {"PATH": os.path.dirname(sys.executable) + ":/bin"}
    result = command("estimate.submit", plan_file(), env={**nowhere, "SLURM_CONF": "/nowhere"})
    assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_logs_and_cancel_of_what_was_never_submitted(command, tmp_path):
    for name in ("logs", "cancel"):
        result = command(f"estimate.{name}", tmp_path / "store")
        assert result.returncode == 2 and "nothing was submitted for" in result.stderr

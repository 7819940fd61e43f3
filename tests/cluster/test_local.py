"""A plan as processes on this machine: the same store, bit for bit, and the same care."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from coarlib.commands.cluster import submit
from coarlib.commands.store import initialize_store, make_dataset
from coarlib.errors import ClusterError
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
            "rows_per_job": 60,
            **changes,
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def submit_here(monkeypatch, project_root, capsys):
    """Run ``coar submit`` in this process; returns what it prints."""
    monkeypatch.chdir(project_root)

    def run(*words):
        submit.main([str(word) for word in words])
        return capsys.readouterr().out

    return run


def same(one, other):
    one, other = Store.open(one), Store.open(other)
    assert len(one.completed_rows()) == len(other.completed_rows()) == one.num_models
    assert (one.checksums() == other.checksums()).all()
    return all(
        np.array_equal(one.array(key), other.array(key), equal_nan=True) for key in one.spec.schema
    )


def test_four_processes_fill_the_same_store_as_one(submit_here, plan_file, tmp_path):
    submit_here(plan_file(), "--local", 4)
    one, spec = str(tmp_path / "one"), str(tmp_path / "spec.json")
    initialize_store.main(["--logging.logdir", one, "--logging.spec", spec])
    task = "tests/zoo/linear_task.py:LinearTask"
    make_dataset.main(["--expt.base_dir", one, "--expt.task", task])
    assert same(tmp_path / "store", tmp_path / "one")
    assert "240 rows verified" in submit_here(plan_file(), "--local", 4)


def test_the_digits_set_up_gives_the_same_bits(submit_here, plan_file, tmp_path, project_root):
    load_or_train(tmp_path / "model.pt")
    spec = json.loads((project_root / "specs/digits_test.json").read_text())
    (tmp_path / "digits.json").write_text(json.dumps({**spec, "num_models": 12}))
    for name, processes, rows in (("four", 4, 3), ("one", 1, 12)):
        plan = plan_file(
            store=str(tmp_path / name),
            spec=str(tmp_path / "digits.json"),
            task="estimate.digits.make_dataset",
            task_args={"model_path": str(tmp_path / "model.pt")},
            worker_args={"device": "cpu"},
            rows_per_job=rows,
        )
        submit_here(plan, "--local", processes)
    assert same(tmp_path / "four", tmp_path / "one")


def test_steps_run_in_turn_and_are_passed_over_when_done(submit_here, plan_file, tmp_path):
    steps = [
        {"name": "check", "run": f"verify {tmp_path / 'store'}", "creates": str(tmp_path / "no")},
        {"name": "show", "run": f"status {tmp_path / 'store'}", "array": 2},
    ]
    plan = plan_file(then=steps, rows_per_job=240)
    assert "check: no row is torn" in submit_here(plan, "--local", 2)
    (tmp_path / "no").touch()
    assert "is there: nothing to do" in submit_here(plan, "--local", 2)


def test_a_step_that_fails_says_why(submit_here, plan_file, tmp_path):
    steps = [{"name": "fit", "run": f"verify {tmp_path / 'elsewhere'}"}]
    plan = plan_file(then=steps, rows_per_job=240)
    with pytest.raises(ClusterError, match=r"the step fit failed.*elsewhere is not a directory"):
        submit_here(plan, "--local", 2)


def test_tries_are_bounded_and_the_error_is_the_tasks(submit_here, plan_file, tmp_path):
    plan = plan_file(task="tests/zoo/broken_tasks.py:SometimesBad", tries=2, rows_per_job=120)
    with pytest.raises(ClusterError, match=r"still missing after 2 tries.*row 5"):
        submit_here(plan, "--local", 2)
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


def test_a_dry_run_prints_all_scripts_and_touches_nothing(submit_here, plan_file, tmp_path):
    printed = submit_here(plan_file(then=[{"name": "fit", "run": "run_regression S"}]), "--dry-run")
    for words in ("round-1/fill.sbatch", "--array=0-3", "round-1/verify.sbatch", "fit.sbatch"):
        assert words in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "spec.json"]


def test_without_slurm_one_sentence_says_what_to_do(command, plan_file, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to("/bin/bash")
    result = command(
        "coarlib.commands.cluster.submit", plan_file(), env={"PATH": str(tmp_path / "bin")}
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "is not on this machine" in result.stderr and "here (local)" in result.stderr


def test_logs_and_cancel_of_what_was_never_submitted(command, tmp_path):
    for name in ("logs", "cancel"):
        result = command(f"estimate.{name}", tmp_path / "store")
        assert result.returncode == 2 and "nothing was submitted for" in result.stderr

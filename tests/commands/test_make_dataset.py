"""python -m estimate.make_dataset: ranges, partitions, resuming after any death."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT

from coarlib.store.checksum import row_checksums

TASK = ROOT / "tests" / "zoo" / "linear_task.py"
BROKEN = ROOT / "tests" / "zoo" / "broken_tasks.py"


def arguments(store, *more, task=TASK):
    return ["--expt.base_dir", str(store.path), "--expt.task", str(task), *map(str, more)]


def start(store, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "estimate.make_dataset", *arguments(store, *more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(store, count):
    for _ in range(600):
        if len(store.completed_rows()) >= count:
            return
        time.sleep(0.05)
    pytest.fail("the worker wrote no rows")


def assert_all_rows_are_right(store):
    from zoo.linear_task import true_weights

    assert store.completed_rows().tolist() == list(range(store.num_models))
    assert np.load(store.path / "_completed.npy").all()
    rows = np.arange(store.num_models)
    arrays = {key: np.array(store.array(key)) for key in store.spec.schema}
    assert (row_checksums(rows, arrays) == store.checksums()).all()
    assert (arrays["masks"] == store.draw_masks(store.design, rows)).all()
    expected = (arrays["masks"] @ true_weights(10) + 1).astype(np.float16)
    assert (arrays["margins"] == expected).all()


@pytest.mark.parametrize("kills", [1, 3])
def test_sigkill_mid_fill_and_resume(store, command, kills):
    slow = ("--expt.task_args", '{"seconds": 0.2}', "--expt.rows_per_batch", 2)
    for kill in range(kills):
        worker = start(store, *slow)
        wait_for_rows(store, 2 + 4 * kill)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        worker.stdout.close()
        worker.stderr.close()
        assert len(store.completed_rows()) < 24
    done = command("coarlib.commands.store.make_dataset", *arguments(store))
    assert done.returncode == 0, done.stderr
    assert "24 of 24 rows completed" in done.stdout
    assert "were completed already" in done.stdout
    assert_all_rows_are_right(store)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_rows_in_hand(store, command, number):
    worker = start(store, "--expt.task_args", '{"seconds": 0.3}', "--expt.rows_per_batch", 2)
    wait_for_rows(store, 2)
    worker.send_signal(number)
    output, errors = worker.communicate(timeout=60)
    assert worker.returncode == 75, errors
    assert "stopped by a signal" in output
    written = len(store.completed_rows())
    assert 2 <= written < 24
    assert written % 2 == 0
    assert command("coarlib.commands.store.make_dataset", *arguments(store)).returncode == 0
    assert_all_rows_are_right(store)


def test_a_second_signal_drops_them(store):
    worker = start(store, "--expt.task_args", '{"seconds": 30}', "--expt.rows_per_batch", 2)
    for _ in range(600):
        if any((store.path / "workers").iterdir()):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=20)
    assert worker.returncode == 76
    assert len(store.completed_rows()) == 0


def test_partitions_cover_the_range(store, command):
    for index in (2, 0, 1):
        done = command(
            "coarlib.commands.store.make_dataset",
            *arguments(store, "--expt.num_partitions", 3, "--expt.partition_index", index),
        )
        assert done.returncode == 0, done.stderr
        assert "8 rows written" in done.stdout
    assert_all_rows_are_right(store)


def test_workers_on_the_same_rows_at_once(store):
    workers = [start(store, "--expt.rows_per_batch", 1 + index) for index in range(3)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert_all_rows_are_right(store)


BAD = [
    (["--expt.start_index", 0, "--expt.end_index", 25], "lies outside the store"),
    (["--expt.start_index", 5, "--expt.end_index", 5], "is empty"),
    (["--expt.partition_index", 1], "there are 1 partitions"),
    (["--expt.mask_size", 2304], "masks of"),
    (["--expt.subsample_prob", 0.5], "use the same mask arguments"),
    (["--expt.subsample_prob", 0], "must be above 0"),
    (["--expt.device", "cuda:77"], "cannot be used here"),
    (["--expt.device", "warp"], "cannot be used here"),
    (["--expt.task_args", "{"], "must be key=value"),
    (["--expt.task_args", "[]"], "or a JSON object"),
    (["--expt.rerun", "perhaps"], "unknown argument perhaps"),
    (["--expt.start", 0], "unknown argument"),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_exit_with_2_and_change_nothing(store, capsys, more, message):
    from coarlib.commands.arguments import run
    from coarlib.commands.store.make_dataset import main

    before = {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run(main, arguments(store, *more))
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert len(text.splitlines()) == 1
    after = {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}
    assert after == before


def test_nan_rows_on_the_command_line(store, command):
    bad = arguments(store, task=f"{BROKEN}:SometimesBad")
    refused = command("coarlib.commands.store.make_dataset", *bad)
    assert refused.returncode == 2
    assert "allow_nonfinite records them" in refused.stderr
    allowed = command("coarlib.commands.store.make_dataset", *bad, "--expt.allow_nonfinite", "1")
    assert allowed.returncode == 0
    assert "3 of them hold NaN or inf" in allowed.stdout


def test_nothing_runs_as_a_full_disk_would(store, tmp_path):
    """RLIMIT_FSIZE makes the kernel itself refuse the write in the middle of a row."""
    offset = np.lib.format.open_memmap(store.path / "margins.npy", mode="r").offset
    limit = offset + 5 * 6 + 3  # inside row 5 of margins
    code = (
        "import resource, signal, runpy, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "sys.argv = ['x', *sys.argv[1:]];"
        "runpy.run_module('coarlib.commands.store.make_dataset', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *arguments(store, "--expt.rows_per_batch", 2)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(store.completed_rows()) < 6
    subprocess.run(
        [sys.executable, "-m", "estimate.make_dataset", *arguments(store)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    assert_all_rows_are_right(store)

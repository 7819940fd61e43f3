"""Arrays of any job system: each member's command fills its part, whatever numbers it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from coarlib.cluster.parts import part_of
from coarlib.commands.arguments import run
from coarlib.commands.store.make_dataset import COMMAND, _rows, main
from coarlib.errors import ClusterError
from coarlib.store import Store
from coarlib.store.verify import verify

TASK = str(ROOT / "tests" / "zoo" / "linear_task.py")
SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")


def words(path, part):
    return [str(path), "--task", TASK, "--part", part, "--device", "cpu"]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/8", {}, (0, 8)),
        ("7/8", {"JOB_COMPLETION_INDEX": "3"}, (7, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "3"}, (3, 8)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "5"}, (2, 5)),
        ("auto", {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "4"}, (0, 4)),
        ("auto", dict(zip(SLURM, "316", strict=True)) | {"SLURM_ARRAY_TASK_COUNT": "6"}, (2, 6)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "7"}, (7, 8)),
        ("auto/8", {"SKYPILOT_NODE_RANK": "1", "JOB_COMPLETION_INDEX": "1"}, (1, 8)),
    ],
)
def test_what_job_systems_say(text, environment, expected):
    assert part_of(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, "a part is I/N"),
        ("-1/4", {}, "a part is I/N"),
        ("4/4", {}, "numbered from 0 to 3"),
        ("0/0", {}, "no part 0 of 0"),
        ("auto", {}, "none of JOB_COMPLETION_INDEX"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "give auto/N"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "x"}, "must be a whole number, not 'x'"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "numbered from 0 to 1"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "1", "SKYPILOT_NODE_RANK": "2"}, "ambiguous"),
        ("auto", dict(zip(SLURM, "317", strict=True)) | {"SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM"),
    ],
)
def test_what_is_no_part_is_one_sentence(text, environment, message):
    with pytest.raises(ClusterError, match=message):
        part_of(text, environment)


@settings(deadline=None)
@given(count=st.integers(1, 40))
def test_parts_are_balanced_contiguous_and_cover_all_rows(whole, count):
    parts = []
    for index in range(count):
        args = COMMAND.parse(words(whole.path, f"{index}/{count}"))
        parts.append(_rows(args, whole))
    assert np.concatenate(parts).tolist() == list(range(24))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from coarlib.store import initialize
    from coarlib.store.spec import parse_spec

    path = tmp_path_factory.mktemp("parts") / "store"
    initialize(
        path, parse_spec('{"num_models": 24, "schema": {"m": {"dtype": "float32", "shape": []}}}')
    )
    return Store.open(path)


def test_an_indexed_job_is_one_command_and_resumes(store, monkeypatch, capsys):
    for index in (2, 0, 1, 2):  # one of them is started twice, as job systems do
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        main(words(store.path, "auto/3"))
    assert "8 were completed already" in capsys.readouterr().out
    assert len(store.completed_rows()) == 24
    assert verify(store).sound


def test_a_part_goes_with_rows_but_not_with_partitions(store, capsys):
    main([*words(store.path, "1/2"), "--rows", "4:8"])
    assert store.completed_rows().tolist() == [6, 7]
    with pytest.raises(SystemExit) as left:
        run(main, [*words(store.path, "1/2"), "--num_partitions", "2"])
    assert left.value.code == 2
    assert "takes the place of" in capsys.readouterr().err


def test_claims_need_no_parts(store, capsys):
    with pytest.raises(SystemExit) as left:
        run(main, [*words(store.path, "1/2"), "--claim"])
    assert left.value.code == 2
    assert "leave out --part" in capsys.readouterr().err
    main([*words(store.path, "0/1"), "--claim"])
    assert len(store.completed_rows()) == 24


def test_more_parts_than_rows_leave_some_without_work(store, capsys):
    main(words(store.path, "39/40"))
    assert "0 rows written" in capsys.readouterr().out


def test_stores_filled_apart_and_moved_are_one_after_a_merge(store, tmp_path, command):
    """No shared file system: each job fills its own copy of the empty store."""
    for index in range(3):
        copy = tmp_path / f"node{index}" / "store"
        shutil.copytree(store.path, copy)
        main(words(copy, f"{index}/3"))
        (tmp_path / "gathered").mkdir(exist_ok=True)
        shutil.move(copy, tmp_path / "gathered" / f"part{index}")
    main(words(store.path, "0/1"))  # what one machine alone makes
    parts = sorted((tmp_path / "gathered").iterdir())
    done = command("coarlib.commands.store.merge", tmp_path / "joined", *parts)
    assert done.returncode == 0, done.stderr
    joined = Store.open(tmp_path / "joined")
    assert verify(joined).sound
    for key in store.spec.schema:
        np.testing.assert_array_equal(joined.array(key), store.array(key))


def test_an_array_of_ray(store, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote(num_cpus=1, max_retries=3)
        def part(line, environment):
            return subprocess.run(line, check=True, env=environment, capture_output=True).returncode

        line = [sys.executable, "-m", "coarlib", "make_dataset"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        parts = [[*line, *words(store.path, f"{index}/3")] for index in range(3)]
        ray.get([part.remote(words_of_part, environment) for words_of_part in parts])
    finally:
        ray.shutdown()
    assert verify(store).sound
    assert len(store.completed_rows()) == 24

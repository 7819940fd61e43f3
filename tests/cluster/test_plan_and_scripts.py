"""The plan is checked once, and its scripts are what sbatch and bash accept."""

import shutil
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coarlib.cluster import load_plan, parse_plan
from coarlib.cluster.overview import FailedTask, Overview
from coarlib.cluster.queue import QueuedTask
from coarlib.cluster.rounds import round_scripts, split_blocks, step_scripts
from coarlib.cluster.scripts import Blocks, fill_script
from coarlib.cluster.templates import templates
from coarlib.commands.cluster.submit import main as submit
from coarlib.errors import ClusterError

MINIMAL = {"store": "out/store", "task": "my_task.py:Mine"}
FULL = {
    **MINIMAL,
    "task_args": {"path": "it's here", "sizes": [1, 2]},
    "worker_args": {"rows_per_batch": 4, "allow_nonfinite": True},
    "name": "full",
    "rows_per_job": 10,
    "concurrent_jobs": 6,
    "workers_per_job": 2,
    "resources": {
        "time": "00:30:00",
        "gpus": 1,
        "memory": "16G",
        "partition": "gpu",
        "account": "lab",
        "sbatch": ["--mail-type=FAIL"],
    },
    "environment": {
        "setup": ["module load cuda"],
        "container": "image file.sif",
        "mounts": ["/data:/data"],
    },
    "then": [
        {"name": "fit", "run": "run_regression --config 'my fit.yaml'", "creates": "out/fit"},
        {"name": "blocks", "run": ["fit_targets", "--shard", "{index}/3"], "array": 3},
        {"name": "score", "run": "score_lds", "resources": {"cpus": 4}},
    ],
}


def checked(script):
    """Assert that bash accepts the syntax."""
    result = subprocess.run(
        ["bash", "-n"], input=script, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return script


def test_a_plan_survives_being_written_and_read():
    plan = parse_plan(FULL)
    assert parse_plan(yaml.safe_load(plan.as_yaml())) == plan
    assert parse_plan(MINIMAL).name == "store"
    assert parse_plan(FULL).then[2].resources.cpus == 4
    assert parse_plan(FULL).then[2].resources.account == "lab"
    assert parse_plan(FULL).then[2].resources.gpus == 0


WRONG = [
    ({"stoer": "x"}, r"unknown key stoer; did you mean 'store'"),
    ({"resources": {"partitoin": "x"}}, r"unknown key resources.partitoin; did you mean"),
    ({"store": None}, "store is missing"),
    ({"rows_per_job": 0}, "rows_per_job must be at least 1, not 0"),
    ({"rows_per_job": "many"}, "rows_per_job must be a whole number"),
    ({"rows_per_job": True}, "rows_per_job must be a whole number"),
    ({"resources": {"time": 3600}}, "resources.time must stand in quotes"),
    ({"resources": {"time": "soon"}}, "resources.time must be minutes or"),
    ({"resources": {"memory": "lots"}}, "resources.memory must be like 16G"),
    ({"resources": {"sbatch": ["--array=1-3"]}}, "further options of sbatch"),
    ({"environment": {"runtime": "docker"}}, "apptainer, singularity, pyxis"),
    ({"name": "a b"}, "must be letters"),
    ({"then": {"fit": "x"}}, "then must be a list"),
    ({"then": [{"run": "x"}]}, r"then\[0\].name is missing"),
    ({"then": [{"name": "fit", "run": "x"}] * 2}, "two steps are called 'fit'"),
    ({"task_args": [1]}, "task_args must map"),
    ({"task": "a\nb"}, "text of one line"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(c)[:30] for c, _ in WRONG])
def test_a_wrong_plan_is_refused_in_one_sentence(tmp_path, change, message):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, **change}))
    with pytest.raises(ClusterError, match=message) as caught:
        load_plan(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["store: [", "- a\n- b", ""])
def test_a_file_that_is_no_plan(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ClusterError):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(ClusterError, match="there is no file"):
        load_plan(tmp_path / "nothing.yaml")


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(1, 2000))
def test_arrays_name_every_missing_block_once_and_no_other(blocks, max_array):
    found = []
    for array in split_blocks(sorted(blocks), max_array):
        for part in array.indices.split(","):
            first, _, last = part.partition("-")
            indices = range(int(first), int(last or first) + 1)
            assert indices[-1] < max_array
            found += [array.offset + index for index in indices]
    assert sorted(found) == sorted(blocks)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"environment": {"container": "image", "runtime": "pyxis"}},
        {"resources": {"nodes": 3}},
        {"resources": {"nodes": 2}, "environment": {"container": "image", "runtime": "pyxis"}},
    ],
    ids=["apptainer", "pyxis", "nodes", "nodes and pyxis"],
)
def test_bash_accepts_every_script(change):
    plan = parse_plan({**FULL, **change})
    scripts = round_scripts(plan, 2500, list(range(250)), 1, max_array=101, tries_left=2)
    assert sorted(scripts) == [
        "fill-0.sbatch", "fill-1.sbatch", "fill-2.sbatch", "submit.sh", "verify.sbatch"
    ]  # fmt: skip
    assert "%2\n" in scripts["fill-0.sbatch"]  # six jobs at once, over three arrays
    assert 'afterany:$fill_0:$fill_1:$fill_2"' in scripts["submit.sh"]
    for script in [*scripts.values(), *step_scripts(plan, 1).values()]:
        checked(script)


def test_words_reach_the_command_as_they_are(tmp_path):
    plan = parse_plan({**FULL, "environment": {"python": str(tmp_path / "python")}})
    (tmp_path / "python").write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" >"$(dirname "$0")/seen.$$"\n'
    )
    (tmp_path / "python").chmod(0o755)
    script = fill_script(plan, 25, Blocks("0-2"), "log").replace("module load cuda", "")
    result = subprocess.run(
        ["bash"], input=script, env={"SLURM_ARRAY_TASK_ID": "2", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = tmp_path.glob("seen.*")  # one of each worker: they run side by side
    seen = [line for file in files for line in file.read_text().splitlines()]
    assert result.returncode == 0, result.stderr
    assert "rows 20 to 24 of out/store, 2 workers" in result.stdout
    assert seen.count('{"path": "it\'s here", "sizes": [1, 2]}') == 2
    assert [seen[i + 1] for i, word in enumerate(seen) if word == "--rows"] == ["20:25"] * 2
    parts = [seen[i + 1] for i, word in enumerate(seen) if word == "--partition_index"]
    assert sorted(parts) == ["0", "1"]


def test_steps_follow_each_other_and_never_wait_for_an_array_by_afterok():
    scripts = step_scripts(parse_plan(FULL), 4)
    submit = scripts["submit.sh"].splitlines()
    after = [line for line in submit if line.startswith('after=("')]
    assert ["afterok" in line for line in after] == [True, False, True]
    assert "#SBATCH --array=0-2" in scripts["blocks.sbatch"]
    assert '"${SLURM_ARRAY_TASK_ID:-0}"/3' in scripts["blocks.sbatch"]
    assert "'my fit.yaml'" in scripts["fit.sbatch"]
    assert step_scripts(parse_plan(MINIMAL), 1) == {}


def test_templates_on_disk_are_what_the_code_writes(project_root):
    for name, content in templates().items():
        checked(content)
        assert (project_root / "slurm" / name).read_text() == content, (
            "python -m coarlib.cluster.templates slurm"
        )
    extra = {path.name for path in (project_root / "slurm").iterdir()} - set(templates())
    assert extra <= {"README.md"}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(project_root):
    files = [str(project_root / "slurm" / name) for name in templates()]
    subprocess.run(["shellcheck", "-S", "warning", *files], check=True)


@pytest.mark.parametrize(
    ("tasks", "count"), [("", 1), ("4", 1), ("0-7", 8), ("1,3-5%2", 4), ("0-8:4", 3)]
)
def test_the_tasks_that_a_line_of_squeue_stands_for(tasks, count):
    assert QueuedTask("1", tasks, "PENDING", "", "").count == count


@pytest.mark.parametrize(
    ("tasks", "state", "reason", "held", "name"),
    [
        ("7", "PENDING", "launch failed requeued held", True, "12_7"),
        ("3-7%2", "PENDING", "JobHeldUser", True, "12_[3-7]"),
        ("", "REQUEUE_HOLD", "None", True, "12"),
        ("", "PENDING", "Dependency", False, "12"),
        ("7", "CANCELLED", "JobHeldUser", False, "12_7"),
    ],
)
def test_held_tasks_are_told_from_those_that_wait(tasks, state, reason, held, name):
    task = QueuedTask("12", tasks, state, reason, "")
    assert (task.held, task.name) == (held, name)


def test_names_and_paths_cannot_write_the_script(tmp_path):
    for what in ("task_args", "worker_args"):
        with pytest.raises(ClusterError, match="is not the name of an argument"):
            parse_plan({**MINIMAL, what: {"x; touch owned": 1}})
    store = tmp_path / 'it\'s "50%" done'
    plan = parse_plan({**MINIMAL, "store": str(store), "then": FULL["then"]})
    assert plan.name == "it_s__50___done"
    scripts = round_scripts(plan, 10, [0], 1, max_array=100) | step_scripts(plan, 1)
    for name, script in scripts.items():
        checked(script)
        outputs = [line for line in script.splitlines() if "--output" in line]
        if name != "submit.sh":
            escaped = str(store).replace("%", "%%").replace('"', '\\"')
            assert outputs[0].startswith(f'#SBATCH --output="{escaped}.jobs/')


BEFORE = [
    ({"run": "run_regresion x"}, "then: fit: unknown command run_regresion; did you mean"),
    ({"run": "run_regression out/store --solvr ridge"}, "then: fit: .*solvr"),
    ({"run": "run_regression out/store --solver rigde"}, "then: fit: --solver must be one of"),
    ({"run": "run_regression {store}"}, r"then: fit: \{store\} stands for nothing"),
    ({"task": "other.py:Mine"}, r"there is no file .*other\.py"),
    ({"task": "mine.py:Min"}, r"mine\.py defines no Min; did you mean 'Mine'"),
    ({"task": "digitz"}, "no set-up or module digitz; did you mean 'digits'"),
    ({"worker_args": {"rows_per_bach": 4}}, "worker_args: unknown argument --rows_per_bach"),
    ({"worker_args": {"rows_per_batch": "x"}}, "rows_per_batch must be a whole number"),
]


@pytest.mark.parametrize(("change", "message"), BEFORE, ids=[str(c)[:40] for c, _ in BEFORE])
def test_wrong_words_are_found_before_anything_runs(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    steps = [{"name": "fit", "run": change.get("run", "run_regression out/store")}]
    plan = {**MINIMAL, "spec": "spec.json", "task": "mine.py:Mine", "then": steps}
    plan |= {key: value for key, value in change.items() if key != "run"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ClusterError, match=message):
        submit([str(tmp_path / "plan.yaml"), "--dry_run"])


def test_control_characters_of_logs_are_escaped():
    failed = FailedTask("fill", "1", "0", "FAILED", None, ["\x1b]0;owned\x07"])
    (shown,) = [line for line in Overview("run", failed=[failed]).lines() if "owned" in line]
    assert shown.isprintable()

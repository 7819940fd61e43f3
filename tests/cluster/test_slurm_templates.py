"""The templates of slurm/ run on a real SLURM, edited as a user edits them; cancel and resume."""

import json
import shutil
import sys

import pytest
import yaml

from coarlib.store import Store
from coarlib.store.verify import verify
from estimate.digits.model import load_or_train

ROWS, ROWS_PER_JOB = 12, 4


def as_a_user_edits(text, directory):
    """Another store, a small one, this Python, and one CPU a worker."""
    for old, new in {
        "out/digits/lds": str(directory / "lds"),
        "out/digits": str(directory),
        "NUM_MODELS=800": f"NUM_MODELS={ROWS}",
        "ROWS_PER_JOB=100": f"ROWS_PER_JOB={ROWS_PER_JOB}",
        "cpus-per-task=2": "cpus-per-task=1",
        "WORKERS=4": "WORKERS=2",
        "ntasks-per-node=4": "ntasks-per-node=2",
        "python -u": f"{sys.executable} -u",
        "--task digits": f"--task digits --set model_path={directory / 'model.pt'} --device cpu",
        "estimate/digits/regression_config_test.yaml": str(directory / "fit.yaml"),
        "700:800": f"3:{ROWS}",  # not the rows that were fitted
    }.items():
        text = text.replace(old, new)
    return text


@pytest.mark.timeout(300)
def test_every_template_runs(slurm, coar, tmp_path, project_root):
    load_or_train(tmp_path / "model.pt")
    spec = json.loads((project_root / "specs/digits_test.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "num_models": ROWS}))
    fit = {"data": {"num_train": 3, "num_val": 0}, "cfg": {"k": 1, "manual_max_lambda": 0}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(fit))
    shutil.copytree(project_root / "slurm", tmp_path / "slurm")
    arrays = {"fill_array": 0, "fill_packed_gpu": 1, "fill_multi_node": 2}
    for file in (tmp_path / "slurm").glob("*.*"):
        text = as_a_user_edits(file.read_text(), tmp_path)
        if file.stem in arrays:
            text = text.replace("--array=0-7", f"--array={arrays[file.stem]}")
        file.write_text(text)
    coar("initialize_store", "--logging.logdir", tmp_path / "store",
         "--logging.spec", tmp_path / "spec.json")  # fmt: skip
    slurm.environment["PYTHONPATH"] = str(project_root)
    jobs = [
        slurm("sbatch", "--parsable", f"--chdir={tmp_path}", tmp_path / f"slurm/{name}.sbatch")
        for name in ("fill_packed_gpu", "fill_multi_node")
    ]
    chain = slurm("bash", tmp_path / "slurm/chain.sh")
    jobs += [word.strip(",") for word in chain.split() if word.strip(",").isdigit()]
    assert len(jobs) == 6

    def ended():
        states = [state for job in jobs for state, _ in slurm.states(job).values()]
        return all(state not in ("PENDING", "RUNNING", "COMPLETING") for state in states)

    slurm.wait(ended, 200, "the end of all jobs")
    states = {job: slurm.states(job) for job in jobs}
    logs = "\n".join(f"{f.name}: {f.read_text()}" for f in tmp_path.glob("*.log"))
    assert all(state == "COMPLETED" for found in states.values() for state, _ in found.values()), (
        f"{states}\n{logs}"
    )
    store = Store.open(tmp_path / "store")
    assert len(store.completed_rows()) == ROWS and verify(store).sound
    assert (tmp_path / "attributions/datamodels.pt").exists() and (tmp_path / "lds.json").exists()
    assert "8 to 11" in logs and "4 workers" in logs


def test_cancel_then_resume(slurm, coar, tmp_path, project_root):
    spec = {
        "num_models": 60,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [10]},
            "margins": {"dtype": "float32", "shape": [3]},
        },
        "design": {"kind": "bernoulli", "keep_prob": 0.8, "seed": 1},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    plan, store = tmp_path / "plan.yaml", tmp_path / "store"

    def write(seconds):
        content = {
            "store": str(store),
            "spec": str(tmp_path / "spec.json"),
            "task": "tests/zoo/linear_task.py:LinearTask",
            "task_args": {"seconds": seconds},
            "rows_per_job": 20,
            "concurrent_jobs": 2,
            "resources": {"time": "10"},
        }
        plan.write_text(yaml.safe_dump(content))

    write(2.0)
    coar("submit", plan)
    jobs = json.loads((tmp_path / "store.jobs/jobs.jsonl").read_text().splitlines()[0])
    last = f"{jobs['job']}_2"
    slurm("scontrol", "hold", last)  # at once: on a slow machine its turn comes before the logs
    slurm.wait(lambda: len(Store.open(store).completed_rows()) >= 4, 60, "a first batch")
    second = coar("status", store)
    assert "fill" in second and "running" in second and "pending" in second
    assert f"scontrol release {last}" in second
    shown = coar("logs", store)
    assert "rows 0 to 19" in shown and f"next: coar status {store}" in shown
    assert "cancelled" in coar("cancel", store)
    ended = coar("cancel", store)
    assert "no other job" in ended and f"next: coar status {store}" in ended
    done = len(Store.open(store).completed_rows())
    assert 0 < done < 60
    write(0.0)
    out = coar("submit", plan, "--resume")
    assert "submitted fill.sbatch" in out
    slurm.wait(lambda: len(Store.open(store).completed_rows()) == 60, 60, "a full store")
    slurm.wait(lambda: any("60 rows verified" in file.read_text()
                           for file in (tmp_path / "store.jobs/logs").glob("verify-*.log")),
               60, "the verify job")  # fmt: skip
    assert json.loads(coar("status", store, "--json"))["jobs"]["states"]["verify"]["COMPLETED"] == 1

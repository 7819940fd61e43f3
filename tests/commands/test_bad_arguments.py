"""Nonsense for every argument of the commands that read a store: one sentence, never a traceback.

Every command starts from arguments that work; each argument in turn is given nonsense. The command
may still succeed (a name can be anything), or must print one line and exit with 2.
"""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import yaml
from paths import ROOT

from coarlib.commands.__main__ import load
from coarlib.commands.arguments import run
from coarlib.commands.judge import evaluate

TASK = f"{ROOT}/tests/zoo/linear_task.py:LinearTask"
FIT = "--data.data_path=store --data.y_name=margins --data.num_train=40 --data.num_val=20 --cfg.k=1"
COMMANDS = {
    "initialize_store": "--logging.logdir=new --logging.spec=spec.json",
    "make_dataset": f"--expt.base_dir=store --expt.task={TASK} --expt.start_index=0 "
    "--expt.end_index=5 --expt.rerun=1 --expt.threads=1",
    "write_dataset": "--cfg.data_dir=store --cfg.out_path=new.beton --cfg.x_name=masks "
    "--cfg.y_name=margins",
    "run_regression": f"{FIT} --cfg.manual_max_lambda=0 --cfg.out_dir=new",
    "moments": f"{FIT} --cfg.out_dir=new --shard.index=0 --shard.count=2",
    "fit_targets": f"{FIT} --cfg.out_dir=new --shard.index=0 --shard.count=2",
    "score_lds": "--data.store=store --data.scores=attributions --data.rows=40:60 "
    "--cfg.kind=pearson",
    "power": "store",
    "verify": "store",
    "status": "store",
    "provenance": "store",
    "recompute": "store",
    "merge": "new store",
    "submit": "plan.yaml --dry-run",
    "logs": "store",
}
NONSENSE = (
    *("", "nope", "-1", "0", "1e9", "nan", "3.5", "5:2", ".."),
    *("junk.bin", "junk.json", "array.npy", "store", "é\n☃", "x" * 300),
)


def outcome(name, words):
    """Exit code and stderr of a command; anything but SystemExit is a failure of the test."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            run(load(name).main, [*words, "--quiet"])
        except SystemExit as end:
            return end.code, errors.getvalue()
    return 0, errors.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, a fit of it, a plan, and files of junk."""
    folder = tmp_path_factory.mktemp("bad")
    with contextlib.chdir(folder):
        spec = {
            "num_models": 60,
            "schema": {
                "masks": {"dtype": "bool_", "shape": [10]},
                "margins": {"dtype": "float32", "shape": [3]},
            },
            "design": {"kind": "bernoulli", "keep_prob": 0.8, "seed": 1},
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        plan = {"store": "planned", "spec": "spec.json", "task": TASK, "rows_per_job": 20}
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
        (folder / "junk.bin").write_bytes(np.random.default_rng(0).bytes(500))
        (folder / "junk.json").write_text('{"a": [1, 2, {"b": null}]}')
        np.save(folder / "array.npy", np.zeros((3, 3)))
        for name, words in (
            ("initialize_store", "--logging.logdir=store --logging.spec=spec.json"),
            ("make_dataset", f"--expt.base_dir=store --expt.task={TASK} --expt.threads=1"),
            ("run_regression", f"{FIT} --cfg.manual_max_lambda=0 --cfg.out_dir=attributions"),
        ):
            assert outcome(name, words.split()) == (0, "")
    return folder


def with_nonsense(words, command, key, nonsense):
    """Words with ``nonsense`` for one argument, which may stand there by any of its names."""
    names = {f"--{name}" for name, short in command.names().items() if short == key}
    kept = [word for word in words if word.split("=")[0] not in names]
    if command.params[key].positional:
        at = [name for name, param in command.own.items() if param.positional].index(key)
        places = [at for at, word in enumerate(kept) if not word.startswith("--")]
        kept = [word for place, word in enumerate(kept) if place not in places[at : at + 1]]
    return [*kept, f"--{key}={nonsense}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_nonsense_gets_one_sentence(folder, tmp_path, name):
    words, command = COMMANDS[name].split(), load(name).COMMAND
    for place, argument in enumerate(command.own):
        for turn in range(3):  # all of the nonsense comes round within five arguments
            case = with_nonsense(
                words, command, argument, NONSENSE[(3 * place + turn) % len(NONSENSE)]
            )
            shutil.rmtree(tmp_path / "here", ignore_errors=True)
            shutil.copytree(folder, tmp_path / "here")
            with contextlib.chdir(tmp_path / "here"):
                code, errors = outcome(name, case)
            assert code in (0, 2), f"{case}: exit code {code}\n{errors}"
            lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
            assert len(lines) == (code == 2), f"{case}: {errors}"


@pytest.mark.parametrize(
    "line",
    [
        "status store --interval nan",
        "run_regression store --y_name margins --out new --manual_max_lambda nan",
        f"make_dataset store --task {TASK} --threads 99999999999",
    ],
)
def test_numbers_that_are_none_or_too_large(folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    name, *words = line.split()
    code, errors = outcome(name, words)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") <= 1


def test_a_fraction_that_is_given_twice_counts_once():
    assert evaluate._fractions("0.1,0.05,0.10") == [0.1, 0.05]

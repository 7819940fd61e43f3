"""The benchmark command: killed and resumed, the table says what it should."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import coarlib as cl
from coarlib.commands.judge.lds_benchmark import main
from coarlib.commands.judge.lds_methods import DigitsMethods, check_methods
from coarlib.errors import ArgumentError, ScoringError, SetupError, TaskError
from coarlib.interop.banks import write_bank
from coarlib.scoring import RowsLeftOutWarning
from coarlib.setups import load
from coarlib.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on_and_prints_the_table(tmp_path, capsys):
    arguments = ["--bench.out_dir", str(tmp_path), "--bench.size", "test", "--bench.device", "cpu"]
    words = [sys.executable, "-m", "estimate.lds_benchmark", *arguments]
    worker = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ})
    store = tmp_path / "logistic_test" / "store"
    deadline = time.monotonic() + 200
    while worker.poll() is None and time.monotonic() < deadline:
        if store.is_dir():
            break
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    main(arguments)
    table = capsys.readouterr().out
    assert "24 subsets, 450 targets (held-out digits)" in table
    assert len(Store.open(store).completed_rows()) == 24
    summary = json.loads((tmp_path / "logistic_test" / "lds.json").read_text())
    found = {name: method["lds"] for name, method in summary["methods"].items()}
    assert abs(found["random"]) < 0.1 < found["gradient_similarity"]
    assert 0.1 < found["trak"] < summary["noise_ceiling"] <= 1
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")}
    main(arguments)
    assert capsys.readouterr().out == table
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")}
    masks = np.array(Store.open(store).array("masks"))
    assert (masks.sum(axis=1) == round(1347 / 2)).all() or (masks.sum(axis=1) == 1347 // 2).all()


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="one of full, test"):
        main(["--bench.size", "huge"])
    with pytest.raises(SetupError, match="there is no model 'vit'"):
        main(["--bench.model", "vit", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ArgumentError, match="did you mean 'trak'"):
        main(["--bench.methods", "random,traks", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ArgumentError, match="--methods names no method"):
        main(["--methods", " ,", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ScoringError, match="there are no scores at"):  # before models are trained
        main(["--scores", "A=nowhere.npy", "--bench.out_dir", str(tmp_path)])
    for name in ("trak", "metagradient:3"):
        with pytest.raises(ArgumentError, match=f"{name} is the name of a method of lds_benchmark"):
            main(["--scores", f"{name}=nowhere.npy", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ArgumentError, match="random is the name of a method"):
        main(["--scores", "random=a.npy", "--bank", "b", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ScoringError, match="there are no scores at"):  # a bank has no method trak
        main(["--scores", "trak=nowhere.npy", "--bank", "b", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ArgumentError, match="each name once"):
        main(["--scores", "A=a.npy,A=b.npy", "--bench.out_dir", str(tmp_path)])
    with pytest.raises(ArgumentError, match="--kept must be above 0 and at most 1, not 2"):
        main(["--kept", "2", "--bench.out_dir", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "trak", None)
    with pytest.raises(TaskError, match="pip install traker"):
        main(["--bench.methods", "traker", "--bench.out_dir", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "kronfluence", None)
    with pytest.raises(TaskError, match=r"pip install 'coarlib\[kronfluence\]'"):
        main(["--bench.methods", "ekfac", "--bench.out_dir", str(tmp_path)])
    assert not list(tmp_path.rglob("*"))


def test_the_published_configuration_is_one():
    config = ROOT / "specs" / "digits_lds.yaml"
    with pytest.raises(ArgumentError, match="one of full, test"):  # all its keys are known
        main(["--config", str(config), "--bench.size", "huge"])


def test_subsets_that_scores_were_fitted_on_are_left_out_for_all(tmp_path, capsys):
    rng = np.random.default_rng(0)
    masks, outputs = rng.random((60, 30)) < 0.5, rng.normal(size=(60, 3)).astype("f4")
    bank = write_bank(tmp_path / "bank", masks, outputs)
    cl.fit(masks[:40], outputs[:40], solver="ridge").save(tmp_path / "fit")
    words = ["--bank", str(bank.path), "--out", str(tmp_path), "--scores", f"A={tmp_path / 'fit'}"]
    with pytest.warns(RowsLeftOutWarning, match="were fitted"):
        main(words)
    assert "20 subsets" in capsys.readouterr().out
    methods = json.loads((tmp_path / "bank" / "lds.json").read_text())["methods"]
    assert {name: found["num_rows"] for name, found in methods.items()} == {"random": 20, "A": 20}


@pytest.mark.parametrize("name", ["metagradient:0", "trak:x", "path_kernel:", "random:3"])
def test_numbers_of_methods_are_whole(name):
    with pytest.raises(ArgumentError, match=r":NUMBER, e\.g\. |take no number"):
        check_methods(name)
    assert check_methods("metagradient:4,trak") == ["metagradient:4", "trak"]


NAMES = (
    "metagradient:4",
    "metagradient_trak:4",
    "path_kernel",
    "ridge_rows:9",
    "trak:2",
    "gradient_similarity:1",
)


def test_methods_are_scored_and_kept_with_their_cost(tmp_path, monkeypatch):
    task = load("digits_subsets", {"model": "logistic", "runs": 1})
    images, labels = task.held_out()
    monkeypatch.setattr(task, "held_out", lambda: (images[:6], labels[:6]))
    methods = DigitsMethods(tmp_path, task, 1, 0.5, torch.device("cpu"))
    found = {name: methods.scores(name) for name in NAMES}
    assert {scores.shape for scores in found.values()} == {(1347, 6)}
    costs = {name: methods.trainings(name) for name in NAMES}
    assert (
        costs["ridge_rows:9"] > 0.5 and costs["metagradient_trak:4"] > costs["metagradient:4"] > 1
    )
    assert costs["trak:2"] > costs["gradient_similarity:1"] > 0
    again = DigitsMethods(tmp_path, task, 1, 0.5, torch.device("cpu"))
    monkeypatch.setattr(again, "_trainer", None)
    for name in NAMES:
        np.testing.assert_array_equal(again.scores(name), found[name])
        assert again.trainings(name) == costs[name]
    assert methods.trainings("metagradient:3") is None
    for name in ("metagradient:4", "metagradient_trak:4"):  # as after a run that was stopped
        methods._file(name).unlink()
    goes_on = DigitsMethods(tmp_path, task, 1, 0.5, torch.device("cpu"))
    for name in ("metagradient:4", "metagradient_trak:4"):
        np.testing.assert_allclose(goes_on.scores(name), found[name], rtol=0, atol=1e-6)
        assert goes_on.trainings(name) is None


def test_the_path_kernel_has_the_sign_of_gradient_similarity(tmp_path, monkeypatch):
    task = load("digits_subsets", {"model": "logistic", "runs": 1})
    images, labels = task.held_out()
    monkeypatch.setattr(task, "held_out", lambda: (images[:6], labels[:6]))
    methods = DigitsMethods(tmp_path, task, 1, 0.5, torch.device("cpu"))
    similar = methods.scores("gradient_similarity:1").ravel()
    assert np.corrcoef(methods.scores("path_kernel").ravel(), similar)[0, 1] > 0.5

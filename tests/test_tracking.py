"""Trackers: what they are told, and that they never end the work."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT

from coarlib import tracking
from coarlib.commands.history import explain, record_history
from coarlib.commands.judge import lds_benchmark, train_subset
from coarlib.commands.start import attribute
from coarlib.commands.store import gradient_passes, initialize_store, make_dataset
from coarlib.errors import ArgumentError, SetupError
from coarlib.progress import Progress
from coarlib.regression.so_far import CorrelationSoFar
from coarlib.store import Store

SPEC = {
    "num_models": 300,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [12]},
        "margins": {"dtype": "float64", "shape": [3]},
    },
    "design": {"kind": "bernoulli", "keep_prob": 0.7, "seed": 0},
}
TASK = str(ROOT / "tests" / "zoo" / "linear_task.py")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN", 0.0)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_fill_is_followed_with_its_correlation_so_far(tmp_path, capsys):
    store = str(tmp_path / "store")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    initialize_store.main([store, "--spec", str(tmp_path / "spec.json")])
    make_dataset.main(
        [store, "--task", TASK, "--rows_per_batch", "20", "--log", "jsonl", "--quiet"]
    )
    found = lines(tmp_path / "store.log.jsonl")
    assert found[0]["begun"]["task"] == TASK
    assert [line["rows done"] for line in found[1:]] == [*range(20, 301, 20), 300]
    scored = [(line["rows"], line["correlation"]) for line in found[1:] if "correlation" in line]
    assert [rows for rows, _ in scored] == [100, 200]  # each time they have doubled
    assert all(r > 0.9 for _, r in scored) and found[-1]["step"] == 300
    assert len(Store.open(store).completed_rows()) == 300


def test_a_training_is_followed_with_its_loss(tmp_path):
    history = str(tmp_path / "h")
    settings = ["--set", "num_train=40", "--set", "num_steps=6", "--set", "batch_size=16"]
    record_history.main([history, "--task", "digits", *settings, "--log", "jsonl", "--quiet"])
    found = [line for line in lines(tmp_path / "h.log.jsonl") if "steps done" in line]
    assert [line["steps done"] for line in found] == [1, 2, 3, 4, 5, 6, 6]
    assert all(line["loss"] > 0 for line in found) and found[0]["steps a second"] > 0


def follow(name, place):
    """Log as work does of which one part follows another: steps of a training, then rows."""
    with tracking.tracked(name, place, {"task": "digits"}):
        for unit in ("step", "row"):
            with Progress(3, "working", unit, quiet=True) as progress:
                for _ in range(3):
                    progress.advance()


def test_what_real_tensorboard_shows(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow("tensorboard", tmp_path / "store")
    found = accumulator.EventAccumulator(str(tmp_path / "store.tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("rows done")] == [
        (1, 1), (2, 2), (3, 3), (3, 3)
    ]  # fmt: skip
    assert len(found.Scalars("steps done")) == 4


def test_what_real_mlflow_keeps(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    follow("mlflow", tmp_path / "store")
    (run,) = mlflow.search_runs(experiment_names=["coarlib"], output_format="list")
    assert run.info.run_name == "store" and run.data.params == {"task": "digits"}
    assert run.data.metrics["rows done"] == 3 and run.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "steps done")
    assert sorted(entry.step for entry in history) == [1, 2, 3, 3]


def test_what_real_wandb_keeps_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for key, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{key}", value)
    kept = []
    close = tracking.WandB.close
    monkeypatch.setattr(
        tracking.WandB, "close", lambda self: (kept.append(dict(self._run.summary)), close(self))
    )
    follow("wandb", tmp_path / "store")
    assert kept[0]["steps done"] == 3 and kept[0]["rows done"] == 3  # later, at smaller steps
    assert list((tmp_path / "wandb").glob("offline-run-*")) and wandb.run is None


def play(name, monkeypatch):
    """A package that remembers what it was told."""
    said = []

    def remember(what):
        return lambda *args, **kwargs: said.append((what, args, kwargs))

    run = SimpleNamespace(
        log=remember("log"),
        finish=remember("close"),
        define_metric=remember("step"),
        url="",
        dir="d",
    )
    writer = SimpleNamespace(
        add_text=remember("about"), add_scalar=remember("log"), close=remember("close")
    )
    played = {
        "wandb": {"wandb": SimpleNamespace(init=lambda **about: said.append(about) or run)},
        "mlflow": {
            "mlflow": SimpleNamespace(
                set_experiment=remember("experiment"),
                start_run=remember("start"),
                log_params=remember("about"),
                log_metrics=remember("log"),
                end_run=remember("close"),
                get_tracking_uri=lambda: "sqlite:///mlflow.db",
            )
        },
        "tensorboard": {
            "tensorboard": SimpleNamespace(),
            "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=lambda folder: writer),
        },
    }
    for module, content in played[name].items():
        monkeypatch.setitem(sys.modules, module, content)
    return said


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_adapters_pass_numbers_on(name, monkeypatch, tmp_path):
    said = play(name, monkeypatch)
    with (
        tracking.tracked(name, tmp_path / "store", {"task": "t"}, lambda: {"correlation": 0.5}),
        Progress(2, "filling", quiet=True) as progress,
    ):
        progress.advance()
        progress.advance()
    logged = (
        [entry for entry in said if entry[0] == "log"]
        if name != "wandb"
        else [entry for entry in said if isinstance(entry, tuple) and entry[0] == "log"]
    )
    assert len(logged) >= 3 and "correlation" in str(logged) and "rows done" in str(logged)
    assert said[-1][0] == "close"
    assert "store" in str(said[:2]) or name == "tensorboard"


@pytest.mark.parametrize(
    "module", [attribute, explain, gradient_passes, lds_benchmark, make_dataset, record_history,
               train_subset]
)  # fmt: skip
def test_all_that_takes_long_can_be_followed(module):
    assert "log" in module.COMMAND.params


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_missing_package_is_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(SetupError, match=rf"pip install 'coarlib\[{name}\]'"),
        tracking.tracked(name, tmp_path / "store", {}),
    ):
        pass


def test_a_tracker_that_fails_ends_with_one_warning(monkeypatch, tmp_path, capsys):
    play("wandb", monkeypatch)
    with (
        tracking.tracked("wandb", tmp_path / "s", {}, lambda: 1 / 0),
        Progress(3, "filling", quiet=True) as progress,
    ):
        for _ in range(3):
            progress.advance()
    assert capsys.readouterr().err.count("tracking by wandb has ended (ZeroDivisionError") == 1
    assert not tracking.is_tracked()


def raises(*_, **__):
    raise ValueError("no key:\n  log in")


def test_a_tracker_that_does_not_start_is_one_sentence_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=raises))
    with (
        pytest.raises(SetupError, match=r"by wandb does not start \(ValueError: no key: log in\)"),
        tracking.tracked("wandb", tmp_path / "s", {}),
    ):
        pass


def test_a_tracker_that_does_not_end_does_not_end_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tracking.JsonLines, "close", raises)
    with tracking.tracked("jsonl", tmp_path / "s", {}):
        pass
    assert "tracking by jsonl has ended (ValueError" in capsys.readouterr().err


def test_people_are_told_where_to_look(tmp_path, capsys):
    with tracking.tracked("jsonl", tmp_path / "new" / "s", {}):
        pass
    assert capsys.readouterr().err == f"followed in {tmp_path / 'new' / 's.log.jsonl'}\n"


def test_an_unknown_tracker_is_refused(tmp_path):
    with (
        pytest.raises(ArgumentError, match="did you mean 'wandb'"),
        tracking.tracked("wandbb", tmp_path, {}),
    ):
        pass


def test_what_is_not_masks_and_outputs_has_no_correlation(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    np.save(store / "words.npy", np.zeros((120, 3), np.int32))
    np.save(store / "_completed.npy", np.ones(120, bool))
    assert CorrelationSoFar(Store.open(store))() == {"rows": 120.0}

"""An explanation belongs to what it explains, and says how good it is."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.recorded_runs import Run, tiny_data, tiny_model

from coarlib.errors import HistoryError
from coarlib.history import TrainingLoss, open_run
from coarlib.path_kernel import explain, predict
from coarlib.path_kernel.adjoint import Sweep

RUN = Run("AdamW", {"lr": 0.05, "weight_decay": 0.5})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "h"
    return path, RUN.record(path)


@pytest.fixture
def run(recorded):
    return open_run(*recorded, RUN.loss(), tiny_data()[0])


def scaled(factor, logits, target):
    return factor * logits.sum()


def closing_over(factor):
    return lambda logits, target: factor * logits.sum()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x, y, o: {"inputs": x + 1e-9, "targets": y, **o}, "test inputs"),
        (lambda x, y, o: {"inputs": x, "targets": (y + 1) % 5, **o}, "test targets"),
        (lambda x, y, o: {"inputs": x, "targets": y, "output": closing_over(3.0)}, "output"),
        (
            lambda x, y, o: {
                "inputs": x,
                "targets": y,
                "output": functools.partial(scaled, 2.0),
            },
            "output",
        ),
    ],
)
def test_an_explanation_of_something_else_is_never_returned(run, tmp_path, change, named):
    inputs, targets = tiny_data()[1]
    options = {"output": closing_over(2.0)}
    wanted = explain(run, inputs, targets, out=tmp_path / "e", quiet=True, **options)
    again = explain(run, inputs, targets, out=tmp_path / "e", quiet=True, output=closing_over(2.0))
    np.testing.assert_array_equal(again["data"], wanted["data"])
    with pytest.raises(HistoryError, match=f"another explanation .{named}"):
        explain(run, out=tmp_path / "e", quiet=True, **change(inputs, targets, options))


def test_nor_one_of_another_history_loss_model_or_data(recorded, run, tmp_path):
    points = tiny_data()[1]
    explain(run, *points, out=tmp_path / "e", quiet=True)
    other = Run("AdamW", {"lr": 0.051, "weight_decay": 0.5})
    model = other.record(tmp_path / "h")
    for changed, name in (
        (open_run(tmp_path / "h", model, RUN.loss(), tiny_data()[0]), "history"),
        (open_run(*recorded, TrainingLoss(nn.CrossEntropyLoss()), tiny_data()[0]), "loss"),
        (open_run(recorded[0], tiny_model(activation=nn.ReLU), RUN.loss(), tiny_data()[0]), "mod"),
        (open_run(*recorded, RUN.loss(), tiny_data()[0], dtype=torch.float32), "tolerance|dtype"),
    ):
        with pytest.raises(HistoryError, match=f"another explanation .({name})"):
            explain(changed, *points, out=tmp_path / "e", quiet=True)


@pytest.mark.parametrize("file", ["states/theta", "steps/samples", "steps/hyper", "ends/theta"])
def test_a_history_with_a_changed_byte_is_refused(tmp_path, file):
    model = RUN.record(tmp_path, storage="float32")  # so that it keeps its ends as they were
    open_run(tmp_path, model, RUN.loss(), tiny_data()[0])
    content = bytearray((tmp_path / f"{file}.npy").read_bytes())
    content[-3] ^= 1
    (tmp_path / f"{file}.npy").write_bytes(content)
    with pytest.raises(HistoryError, match=rf"{file[:4]}.* damaged: row \d+ does not match"):
        open_run(tmp_path, model, RUN.loss(), tiny_data()[0])


def test_an_empty_share_computes_nothing(run, tmp_path, monkeypatch):
    points = tiny_data()[1]
    monkeypatch.setattr(Sweep, "adjoint", None)
    assert explain(run, *points, out=tmp_path / "e", rows=range(1, 1), quiet=True) is None
    alone = explain(run, *points, rows=range(1, 1), quiet=True)
    assert alone["data"].shape == (0, 5)
    with pytest.raises(HistoryError, match="not test points of 0 to 1"):
        explain(run, *points, rows=range(1, 3), quiet=True)


def test_a_share_without_a_store_has_its_own_rows_alone(run):
    points = tiny_data()[1]
    whole, share = (explain(run, *points, rows=rows, quiet=True) for rows in (None, range(1, 2)))
    np.testing.assert_allclose(share["data"], whole["data"][1:], rtol=0, atol=1e-12)


def test_dtypes_without_a_quadrature_are_refused(recorded):
    run = open_run(*recorded, RUN.loss(), tiny_data()[0], dtype=torch.bfloat16)
    with pytest.raises(HistoryError, match=r"float32 or float64, not torch\.bfloat16"):
        explain(run, *tiny_data()[1], quiet=True)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "1e-3"])
def test_impossible_tolerances_are_refused(run, tolerance):
    for function in (explain, predict):
        with pytest.raises(HistoryError, match="tolerance must be a number of at least 0"):
            function(run, *tiny_data()[1], tolerance=tolerance, quiet=True)


def test_a_sound_explanation_says_so(run, recwarn):
    verdict = explain(run, *tiny_data()[1], quiet=True).verdict()
    assert verdict.sound
    assert verdict.share < 1e-5
    assert "add up to the change of the outputs within" in str(verdict)
    assert f"at 1 of {len(tiny_data()[1][0])} test points, integrated again" in str(verdict)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_training_that_diverged_is_refused(tmp_path):
    run = Run("SGD", {"lr": 1e200})
    model = run.record(tmp_path / "h", tiny_model(activation=nn.ReLU))
    opened = open_run(tmp_path / "h", model, run.loss(), tiny_data()[0])
    for function in (explain, predict):
        with pytest.raises(HistoryError, match="training diverged"):
            function(opened, *tiny_data()[1], quiet=True)


def test_another_loss_at_explain_time_is_loud(recorded):
    wrong = TrainingLoss(lambda o, t: F.cross_entropy(1.2 * o, t))
    with pytest.warns(RuntimeWarning, match="loss, samples or clipping are not those"):
        found = explain(open_run(*recorded, wrong, tiny_data()[0]), *tiny_data()[1], quiet=True)
    assert found.verdict().share > 0.01


def test_the_error_of_single_parts_is_estimated(tmp_path):
    """Against the same explanation to 1e-11: right within a factor of three, at every tolerance."""
    run = Run("AdamW", {"lr": 0.2, "weight_decay": 0.5})
    model = run.record(tmp_path / "h", tiny_model(activation=nn.ReLU))
    opened = open_run(tmp_path / "h", model, run.loss(), tiny_data()[0])
    (inputs, targets), by = tiny_data()[1], ["sample", ("sample", "step")]
    exact = explain(opened, inputs[:1], targets[:1], by=by, tolerance=1e-11, quiet=True)
    for tolerance in (1e-2, 1e-3, 1e-5):
        found = explain(opened, inputs[:1], targets[:1], by=by, tolerance=tolerance, quiet=True)
        off = max(
            np.abs(found[name] - exact[name]).max() for name in found.arrays if "_by_" in name
        )
        assert off / 3 < found["part_error"].max() < 3 * off
        assert found.verdict().part_error == found["part_error"].max()

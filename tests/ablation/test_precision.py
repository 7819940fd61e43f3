"""Precision chosen by what its rounding costs, and taken over by whoever comes later."""

import numpy as np
import pytest
import torch
from torch import nn

import coarlib as cl
from coarlib.ablation import ablate, precision
from coarlib.errors import StoreError, TaskError
from coarlib.store.identity import read_identity
from coarlib.store.reader import Store

CPU = torch.device("cpu")


class Machine:
    """Measures rows whose rounding and speed in half precision are given."""

    def __init__(self, noise, faster, worst=0.0):
        self.noise, self.faster, self.worst = noise, faster, worst

    def measure(self, name, count):
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(precision.ROWS, count, generator=generator)
        if name == "bf16":
            rows = rows + self.noise**0.5 * torch.randn(rows.shape, generator=generator)
            rows[0, 0] += self.worst
        return rows

    def seconds(self, name):
        return 1 / (self.faster if name == "bf16" else 1.0)

    def choose(self, names=("bf16",)):
        clock = iter(range(100)).__next__
        return precision.choose_precision(CPU, names, self.measure, self.seconds, clock)


@pytest.mark.parametrize(
    ("noise", "faster", "worst", "chosen"),
    [
        (0.001, 3.0, 0.0, "bf16"),
        (0.05, 3.0, 0.0, "none"),
        (0.001, 1.0, 0.0, "none"),
        (0.001, 3.0, np.inf, "none"),
        (0.001, 3.0, np.nan, "none"),
    ],
)
def test_half_precision_has_to_be_faster_and_nearly_exact(capsys, noise, faster, worst, chosen):
    assert Machine(noise, faster, worst).choose() == chosen
    assert ("3.0 times as fast" in capsys.readouterr().err) == (chosen == "bf16")


def test_without_half_precision_in_hardware_nothing_is_measured():
    assert precision.choose_precision(CPU, [], None, None) == "none"


def test_of_several_precisions_the_fastest_counts_and_one_that_fails_does_not():
    class Several(Machine):
        def measure(self, name, count):
            if name == "fp16":
                raise RuntimeError("mat1 and mat2 must have the same dtype")
            return super().measure("bf16" if name == "pure_bf16" else name, count)

        def seconds(self, name):
            return {"none": 1.0, "bf16": 0.5, "pure_bf16": 0.4}[name]

    assert Several(0.001, 2.0).choose(["fp16", "pure_bf16", "bf16"]) == "pure_bf16"
    assert Several(0.05, 2.0).choose(["fp16", "pure_bf16", "bf16"]) == "none"


def small_task(autocast="auto"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    images = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ablate(model, (images, torch.arange(30) % 4), autocast=autocast)


def choosing(monkeypatch, name):
    monkeypatch.setattr("coarlib.ablation.tuned.choose_precision", lambda *given: name)


def test_what_is_measured_is_a_few_rows_in_that_precision():
    task = small_task("none")
    task.prepare(CPU)
    rough, pure, exact = (task._outputs_in(name, 20) for name in ("bf16", "pure_bf16", "none"))
    assert exact.shape == rough.shape == pure.shape == (precision.ROWS, 20)
    assert 0 < (exact - rough).abs().max() < 0.1
    assert 0 < (exact - pure).abs().max() < 0.1
    masks = precision.probe_masks(task.num_features).numpy()
    rows = task.rows(np.arange(precision.ROWS), masks)["test_margins"][:, :20]
    assert torch.allclose(rows, exact, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "later"),
    [("bf16", "none"), ("none", "bf16"), ("none", "pure_bf16"), ("pure_bf16", "none")],
)
def test_the_first_workers_choice_is_everybodys(tmp_path, monkeypatch, first, later):
    choosing(monkeypatch, first)
    store = Store.create(tmp_path / "s", small_task(), rows=8, keep_prob=0.9)
    cl.fill(store, small_task(), rows=range(4))
    choosing(monkeypatch, later)
    second = small_task()
    cl.fill(store, second, rows=range(4, 8))
    assert second.autocast == first
    said = small_task(first)
    said.prepare(CPU)
    assert said.identity() == read_identity(store.path)
    values = said.rows(np.arange(8), np.asarray(store.array("masks")))["test_margins"]
    assert np.allclose(store.array("test_margins"), values, atol=1e-6)


def test_what_a_store_has_settled_is_not_probed_again(tmp_path, monkeypatch):
    choosing(monkeypatch, "pure_bf16")
    store = Store.create(tmp_path / "s", small_task(), rows=4, keep_prob=0.9)
    cl.fill(store, small_task(), rows=range(2))
    monkeypatch.setattr("coarlib.ablation.tuned.choose_precision", None)
    later = small_task()
    cl.fill(store, later, rows=range(2, 4))
    assert later.autocast == "pure_bf16"


def test_a_precision_that_was_asked_for_is_not_changed(tmp_path, monkeypatch):
    choosing(monkeypatch, "bf16")
    store = Store.create(tmp_path / "s", small_task(), rows=4, keep_prob=0.9)
    cl.fill(store, small_task(), rows=range(2))
    with pytest.raises(StoreError, match="another task"):
        cl.fill(store, small_task("none"), rows=range(2, 4))
    assert len(store.completed_rows()) == 2


def test_a_model_held_in_half_precision_takes_half_the_inputs_and_is_no_way_of_replacing():
    task = small_task("pure_bf16")
    task.prepare(CPU)
    assert {x.dtype for x in task._network.parameters()} == {torch.bfloat16}
    assert {x.dtype for x in task.plain_model().parameters()} == {torch.float32}
    rows = task.rows(np.arange(2), np.ones((2, task.num_features), bool))["test_margins"]
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0], rows[1])
    with pytest.raises(TaskError, match="replaces activations"):
        ablate(task.model(), (torch.zeros(1, 1, 8, 8), [0]), ablate="mean", autocast="pure_fp16")

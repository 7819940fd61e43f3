"""Rows that retrain: functions of (seed, row, run), whoever computes them, and checkpoints."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.errors import NonFiniteError, TaskError
from coarlib.filling.worker import FillOptions, fill, recompute
from coarlib.masks import MaskDesign, draw
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import (
    ReevaluateTask,
    RetrainTask,
    SequentialTrainingWarning,
    Trainer,
    UntrainableRowWarning,
    train_many,
)
from coarlib.retraining.trainer import cross_entropy
from coarlib.scoring import noise_ceiling
from coarlib.store import Store, initialize
from coarlib.store.spec import parse_spec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, TARGETS = 60, 9
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(EXAMPLES + TARGETS, 12, generator=GENERATOR)
LABELS = (INPUTS @ torch.randn(12, 3, generator=GENERATOR)).argmax(1)
DESIGN = MaskDesign(kind="fixed_size", keep_prob=0.5, seed=3)


def model():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def evaluate(network, device):
    assert not network.training
    assert not torch.is_grad_enabled()
    return margin_log_sum_exp(network(INPUTS[EXAMPLES:].to(device)), LABELS[EXAMPLES:].to(device))


def trainer():
    return Trainer(model, INPUTS[:EXAMPLES], LABELS[:EXAMPLES], epochs=2, batch_size=10)


def task(**changed):
    return RetrainTask(trainer(), evaluate, **changed)


def rows_of(made, indices):
    indices = np.asarray(indices)
    return made.rows(indices, draw(DESIGN, indices, EXAMPLES))["test_margins"]


def test_a_row_is_the_same_alone_in_any_order_and_in_any_batch():
    together = rows_of(task(), range(6))
    for made, tolerance in ((task(at_once=1), 1e-4), (task(at_once=4), 1e-4)):
        backwards = rows_of(made, range(5, -1, -1))[::-1]
        np.testing.assert_allclose(backwards, together, atol=tolerance)
    one_by_one = task(at_once=1)
    assert one_by_one.tolerance == 0
    alone = np.concatenate([rows_of(one_by_one, [i]) for i in range(6)])
    np.testing.assert_array_equal(alone, rows_of(one_by_one, range(6)))


def test_runs_differ_and_are_averaged_or_kept():
    kept = rows_of(task(runs=3, keep_runs=True, at_once=1), range(4))
    assert kept.shape == (4, 3, TARGETS)
    assert np.std(kept, axis=1).min() > 1e-3
    np.testing.assert_allclose(rows_of(task(runs=3, at_once=1), range(4)), kept.mean(axis=1))
    np.testing.assert_array_equal(kept[:, :1], rows_of(task(keep_runs=True, at_once=1), range(4)))
    assert 0 <= noise_ceiling(rows_of(task(runs=4, keep_runs=True), range(30))).mean <= 1


def test_any_training_function_will_do():
    calls = []

    def train(subset, seed, device):
        calls.append((tuple(subset), seed))
        return trainer().train(subset, seed, device).train()  # evaluate() still sees eval mode

    found = rows_of(RetrainTask(train, evaluate, EXAMPLES), range(3))
    np.testing.assert_array_equal(found, rows_of(task(at_once=1), range(3)))
    masks = draw(DESIGN, np.arange(3), EXAMPLES)
    first, again, *others = calls
    assert first == again  # the first is trained twice, to see that it is the same
    assert [c[0] for c in (first, *others)] == [tuple(np.flatnonzero(mask)) for mask in masks]
    assert len({seed for _, seed in calls}) == 3
    with pytest.raises(TaskError, match="num_examples is needed"):
        RetrainTask(train, evaluate)


TASK = """
from torch import Generator, nn, randn
from coarlib.retraining import RetrainTask, Trainer

X = randn(70, 12, generator=Generator().manual_seed(0))

class Tiny(RetrainTask):
    def __init__(self):
        model = lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        trainer = Trainer(model, X[:60], (X[:60].sum(1) > 0).long(), epochs=2, batch_size=10)
        super().__init__(trainer, lambda model, device: model(X[60:])[:, 0], runs=2, at_once=1)
"""


def test_a_store_made_by_four_processes_is_the_store_made_by_one(tmp_path):
    (tmp_path / "tiny.py").write_text(TASK)
    spec = {
        "num_models": 8,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [60]},
            "test_margins": {"dtype": "float32", "shape": [10]},
        },
        "design": {"kind": "fixed_size", "keep_prob": 0.5, "seed": 3},
    }
    workers = []
    for parts in (1, 4):
        initialize(tmp_path / str(parts), parse_spec(json.dumps(spec)))
        for part in range(parts):
            words = ["base_dir", tmp_path / str(parts), "task", tmp_path / "tiny.py"]
            words += ["num_partitions", parts, "partition_index", part, "device", "cpu"]
            flags = [f"--expt.{word}" if i % 2 == 0 else str(word) for i, word in enumerate(words)]
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "estimate.make_dataset", *flags],
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                )
            )
    assert [worker.wait(200) for worker in workers] == [0] * 5
    one, four = Store.open(tmp_path / "1"), Store.open(tmp_path / "4")
    assert len(one.completed_rows()) == len(four.completed_rows()) == 8
    for key in ("masks", "test_margins"):
        np.testing.assert_array_equal(one.array(key), four.array(key))
    assert np.std(one.array("test_margins"), axis=0).min() > 0


def test_checkpoints_are_reevaluated_and_never_replaced_by_training(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    made = rows_of(task(runs=2, checkpoints=tmp_path), range(3))

    def again(**changed):
        return ReevaluateTask(model, evaluate, EXAMPLES, tmp_path, **{"runs": 2, **changed})

    np.testing.assert_allclose(rows_of(again(), [2, 0, 1]), made[[2, 0, 1]], atol=1e-6)
    with pytest.raises(TaskError, match=r"no checkpoint .*row_000003_run_0"):
        rows_of(again(), [3])
    with pytest.raises(TaskError, match="stale: its seed is 0"):
        rows_of(again(seed=1), [0])
    with pytest.raises(TaskError, match="stale: its subset"):
        again().rows(np.array([0]), np.ones((1, EXAMPLES), dtype=bool))
    wider = ReevaluateTask(lambda: nn.Linear(12, 3), evaluate, EXAMPLES, tmp_path)
    with pytest.raises(TaskError, match="of another model"):
        rows_of(wider, [0])
    file = tmp_path / "row_000001_run_0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(TaskError, match="damaged"):
        rows_of(again(), [1])


def test_a_stratified_store_takes_its_classes_from_the_task(tmp_path):
    spec = {
        "num_models": 4,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [EXAMPLES]},
            "test_margins": {"dtype": "float32", "shape": [TARGETS]},
        },
        "design": {"kind": "class_balanced", "per_class": 5, "seed": 2},
    }
    initialize(tmp_path / "store", parse_spec(json.dumps(spec)))
    store = Store.open(tmp_path / "store")
    fill(store, task(), np.arange(4), torch.device("cpu"), FillOptions(quiet=True))
    for mask in store.array("masks"):
        assert np.bincount(LABELS[:EXAMPLES][mask.copy()]).tolist() == [5, 5, 5]
    assert recompute(store, task(at_once=1), 2, torch.device("cpu"))["masks"] == 0


def test_the_layout_is_that_of_a_row():
    kept = task(runs=2, keep_runs=True)
    assert kept.layout().outputs == {"test_margins": ("float32", (2, TARGETS))}
    assert task().layout().outputs == {"test_margins": ("float32", (TARGETS,))}
    assert task().layout().num_features == EXAMPLES
    function = RetrainTask(lambda subset, seed: trainer().train(subset, seed), evaluate, EXAMPLES)
    assert function.layout() == task().layout()


def identity_of(made):
    made.prepare(torch.device("cpu"))
    return made.identity()


def test_the_identity_covers_all_that_a_row_depends_on():
    first = identity_of(task())
    trainer().train(np.arange(20), 0)  # torch wraps SGD.step when the first optimizer is made
    assert first == identity_of(task(at_once=1)) == identity_of(task(checkpoints="anywhere"))
    settings = [{"seed": 1}, {"runs": 2}, {"paired": True}, {"runs": 2, "keep_runs": True}]
    others = [identity_of(task(**changed)) for changed in settings]
    for changed in (
        {"epochs": 3},
        {"batch_size": 11},
        {"options": {"lr": 0.2}},
        {"optimizer": torch.optim.Adam, "options": {"lr": 0.1}},
        {"schedule": "cosine"},
        {"inputs": INPUTS[:EXAMPLES] + 1},
        {"targets": LABELS[:EXAMPLES].flip(0)},
        {"clip_norm": 1.0},
        {"warmup": 1},
        {"augment": torch.neg},
        {"model": lambda: nn.Linear(12, 3)},
        {"loss": lambda outputs, targets: 2 * cross_entropy(outputs, targets)},
    ):
        others.append(identity_of(RetrainTask(replace(trainer(), **changed), evaluate)))
    doubled = RetrainTask(trainer(), lambda network, device: 2 * evaluate(network, device))
    others.append(identity_of(doubled))
    assert len({first, *others}) == 1 + len(others)


class Noisy(nn.Module):
    """Draws from everything that can be seeded: dropout, NumPy, Python, at the start and in use."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.linear.weight.data.mul_(np.random.random() * random.random())  # noqa: NPY002

    def forward(self, x):
        noise = torch.randn_like(x) * np.random.random() + random.random()  # noqa: NPY002
        return self.linear(nn.functional.dropout(x + noise, training=self.training))


def test_training_is_a_function_of_subset_and_seed_whatever_the_model_draws():
    recipe = replace(trainer(), model=Noisy)
    subset = np.arange(0, EXAMPLES, 2)
    first, again, other = (recipe.train(subset, seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(first["linear.weight"], again["linear.weight"])
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
    with pytest.warns(SequentialTrainingWarning, match="draws random numbers"):
        together = train_many(recipe, [subset, subset], [4, 5])
    assert torch.equal(together[0].state_dict()["linear.weight"], first["linear.weight"])

    def train(kept, seed):
        np.random.seed(seed)  # noqa: NPY002 - needs 32 bits
        network = Noisy()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        nn.functional.cross_entropy(network(INPUTS[kept]), LABELS[kept]).backward()
        optimizer.step()
        return network

    makes = [RetrainTask(train, evaluate, EXAMPLES) for _ in range(2)]
    np.testing.assert_array_equal(rows_of(makes[0], range(3)), rows_of(makes[1], [0, 1, 2]))


UNSEEDED = np.random.default_rng()


def unseeded_start():
    network = model()
    network[0].weight.data.mul_(UNSEEDED.random())
    return network


class UnseededUse(nn.Linear):
    def forward(self, x):
        return super().forward(x + UNSEEDED.random())


KEPT = model()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (unseeded_start, r"no function of \(subset, seed\): 0.weight differs"),
        (lambda: UnseededUse(12, 3), r"no function of \(subset, seed\): weight differs"),
        (lambda: KEPT, "returned the same model twice"),
        (lambda: nn.Sequential(KEPT, nn.Linear(3, 3)), "share their parameter 0.0.weight"),
        (lambda: nn.Linear(7, 3), "a step of training fails"),
        (dict, "returned dict"),
    ],
)
def test_what_no_seed_reaches_is_refused_by_name(made, words):
    recipe = replace(trainer(), model=made)
    for call in (
        lambda: recipe.train(np.arange(30), 0),
        lambda: train_many(recipe, [np.arange(30)] * 2, [0, 1]),
        lambda: RetrainTask(recipe, evaluate).prepare(torch.device("cpu")),
    ):
        with pytest.raises(TaskError, match=words):
            call()


def test_a_function_that_ignores_its_seed_is_refused():
    calls = []

    def train(subset, seed):
        calls.append(seed)
        network = nn.Linear(12, 3)
        network.weight.data.mul_(len(calls))
        return network

    with pytest.raises(TaskError, match=r"row 0, a subset of 30 .* another model for the same"):
        rows_of(RetrainTask(train, evaluate, EXAMPLES), [0])


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_row_that_cannot_be_trained_is_named_and_the_others_are_kept(tmp_path, at_once):
    """Row 0 ends its epochs with a batch of one, which batch normalisation refuses."""
    kept = [list(range(size)) for size in (21, 20, 30, 24)]
    spec = {
        "num_models": 4,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [EXAMPLES]},
            "test_margins": {"dtype": "float32", "shape": [TARGETS]},
        },
        "design": {"kind": "explicit", "kept": kept},
    }
    initialize(tmp_path / "store", parse_spec(json.dumps(spec)))
    store, options = Store.open(tmp_path / "store"), FillOptions(quiet=True)
    cpu = torch.device("cpu")
    with (
        pytest.warns(UntrainableRowWarning, match="row 0: the last batch .* is a single one"),
        pytest.raises(NonFiniteError, match=r"row 0: test_margins .* 1 rows were refused and 3"),
    ):
        fill(store, task(at_once=at_once), np.arange(4), cpu, options)
    assert Store.open(tmp_path / "store").completed_rows().tolist() == [1, 2, 3]

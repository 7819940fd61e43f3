"""A stack is used only where a step of it is equal, fits into memory, and takes no longer."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.retraining import SequentialTrainingWarning, Trainer, train_many
from coarlib.retraining import vectorised as module
from coarlib.retraining.probe import probe_stack
from coarlib.retraining.vectorised import models_at_once, train_stack

EXAMPLES, CPU = 60, torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(EXAMPLES, 6, generator=GENERATOR)
LABELS = torch.randint(0, 3, (EXAMPLES,), generator=GENERATOR)


def trainer(model, **changed):
    return Trainer(model, INPUTS, LABELS, **({"epochs": 3, "batch_size": 16} | changed))


class Counting(nn.Linear):
    """Learns a statistic of its inputs as the subclass says."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        self.see(x.detach().mean(0))
        return super().forward(x - self.seen)


class InPlace(Counting):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def see(self, mean):
        self.seen.mul_(0.9).add_(0.1 * mean)


class NotPersistent(InPlace):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6), persistent=False)


class Assigned(InPlace):
    def see(self, mean):
        self.seen = 0.9 * self.seen + 0.1 * mean


class Attribute(Counting):
    def __init__(self):
        super().__init__()
        self.seen, self.steps = 0.0, 0

    def see(self, mean):
        self.steps += 1
        self.seen = 1 / self.steps


class Mixing(nn.Linear):
    """Looks at the whole batch, so that what fills a batch up changes its outputs."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        return super().forward(x - x.mean(0))


class SkippingAtRandom(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x):
        return super().forward(x) if random.random() < 0.9 else self.bias.expand(len(x), 3)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Assigned, "torch.func cannot batch|seen differs"),
        (Attribute, "steps differs|seen differs"),
        (SkippingAtRandom, "draws random numbers"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.1)), "draws random numbers"),
    ],
)
def test_what_a_stack_would_train_otherwise_is_trained_alone_and_said(model, reason):
    recipe = trainer(model)
    subsets = [np.arange(30), np.arange(20, 49), np.arange(31, 60)]
    with pytest.warns(SequentialTrainingWarning, match=reason):
        found = train_many(recipe, subsets, range(3))
    for seed, (subset, made) in enumerate(zip(subsets, found, strict=True)):
        expected = recipe.train(subset, seed)
        for name, value in vars(expected).items():
            if isinstance(value, float | int):
                assert vars(made)[name] == value
        for one, other in zip(made.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(made.buffers(), expected.buffers(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("model", [InPlace, NotPersistent, Mixing])
def test_models_that_look_at_the_batch_are_stacked_where_batches_are_as_large(model):
    recipe = trainer(model)
    assert probe_stack(recipe, CPU).exact
    assert not probe_stack(trainer(wide), CPU).exact
    subsets = [np.arange(30), np.arange(20, 50), np.arange(29), np.arange(30, 59)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train_many(recipe, subsets, range(4))
    for seed, made in enumerate(found):
        expected = recipe.train(subsets[seed], seed)
        torch.testing.assert_close(made.state_dict(), expected.state_dict())
        torch.testing.assert_close(made.weight, expected.weight)


@pytest.mark.parametrize("model", [InPlace, NotPersistent])
def test_buffers_of_a_stack_are_those_of_models_alone(model):
    recipe = trainer(model)
    subsets = [np.arange(30), np.arange(20, 50)]
    for seed, made in enumerate(train_stack(recipe, subsets, range(2), CPU)):
        expected = recipe.train(subsets[seed], seed)
        assert expected.seen.abs().max() > 0.01
        torch.testing.assert_close(made.seen, expected.seen)
        torch.testing.assert_close(made.weight, expected.weight)


def test_a_wrong_update_is_seen(monkeypatch):
    recipe = trainer(lambda: nn.Linear(6, 3), clip_norm=0.01)
    assert probe_stack(recipe, CPU).reason is None
    monkeypatch.setattr("coarlib.retraining.stack.Stack._clip", lambda *_: None)
    assert "differs" in probe_stack(recipe, CPU).reason


def wide():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))


def test_a_stack_that_takes_longer_is_given_up_for_good_and_said(monkeypatch):
    recipe, subsets = trainer(wide, epochs=5), [np.arange(32)] * 6
    monkeypatch.setattr(module, "seconds_alone", lambda *_: 0.0)
    stacks = []
    original = module.Stack
    monkeypatch.setattr(module, "Stack", lambda *a: stacks.append(1) or original(*a))
    for _ in range(2):
        with pytest.warns(SequentialTrainingWarning, match="takes .* times as long"):
            found = train_many(recipe, subsets, range(6))
    assert len(stacks) == 1
    for seed, made in enumerate(found):
        assert torch.equal(made[0].weight, recipe.train(subsets[0], seed)[0].weight)


def test_a_stack_that_is_faster_is_kept(monkeypatch):
    recipe = trainer(wide, epochs=5)
    monkeypatch.setattr(module, "seconds_alone", lambda *_: 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_many(recipe, [np.arange(32)] * 6, range(6))


def test_memory_is_measured(monkeypatch):
    recipe = trainer(wide)
    parameters = sum(part.numel() for part in wide().parameters())
    activations = 16 * (6 + 64 + 64 + 3)
    needed = probe_stack(recipe, CPU).bytes_per_model / 4
    assert 3 * parameters + activations < needed < 3 * (3 * parameters + activations)
    assert models_at_once(recipe, CPU) == 64
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * 5.5 * 4 * needed)
    assert models_at_once(recipe, CPU) == 5

"""Models trained together equal models trained alone."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.errors import TaskError
from coarlib.retraining import SequentialTrainingWarning, Trainer, run_seed, train_many
from coarlib.retraining.randomness import batch_order
from coarlib.retraining.vectorised import models_at_once

TOLERANCE = 2e-4  # of outputs of order 1, after the rounding of batched arithmetic
EXAMPLES = 120


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4)
    )


def normed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )


def layer_normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.GELU(), mlp_head())


def mlp_head():
    return nn.Linear(8, 4)


def trainer(model=mlp, optimizer=torch.optim.SGD, options=None, **changed):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, 1, 6, 6, generator=generator)
    targets = torch.randint(4, (EXAMPLES,), generator=generator)
    options = options or {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    settings = {"epochs": 3, "batch_size": 16} | changed
    return Trainer(model, inputs, targets, optimizer=optimizer, options=options, **settings)


def subsets(number=7, fixed=False):
    rng = np.random.default_rng(1)
    if fixed:
        return [rng.choice(EXAMPLES, 60, replace=False) for _ in range(number)]
    return [np.flatnonzero(rng.random(EXAMPLES) < 0.5) for _ in range(number)]


def assert_same(recipe, found, expected):
    for one, other in zip(found, expected, strict=True):
        assert not one.training
        with torch.no_grad():
            torch.testing.assert_close(
                one(recipe.inputs), other(recipe.inputs), atol=TOLERANCE, rtol=0
            )
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=1e-3, msg=name)


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    ),
    "adam": (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 1e-2}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_every_optimizer_and_schedule(name, schedule):
    optimizer, options = OPTIMIZERS[name]
    recipe = trainer(mlp, optimizer, options, schedule=schedule)
    sets, seeds = subsets(), list(range(7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = train_many(recipe, sets, seeds)
    alone = [recipe.train(subset, seed) for subset, seed in zip(sets, seeds, strict=True)]
    assert_same(recipe, together, alone)
    with torch.no_grad():
        spread = torch.stack([model(recipe.inputs) for model in alone]).std(0).mean()
    assert spread > 20 * TOLERANCE  # the models differ far more than the tolerance


@pytest.mark.parametrize("model", [cnn, normed, layer_normed])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_kind_of_layer_with_state_too(model, drop_last):
    recipe = trainer(model, drop_last=drop_last)
    sets = subsets(5)  # batch normalisation stacks those whose last batches are as large
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = train_many(recipe, sets, range(5), at_once=3)
    alone = [recipe.train(subset, seed) for seed, subset in enumerate(sets)]
    assert_same(recipe, together, alone)


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 4)

    def forward(self, x):
        outputs = self.linear(x.flatten(1))
        return outputs if float(outputs.detach().sum()) < 1e9 else -outputs


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.2), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": dropping}, "the model draws random numbers"),
        ({"model": Stubborn}, "torch.func cannot batch the model"),
        ({"optimizer": torch.optim.ASGD, "options": {"lr": 0.1}}, "ASGD does not treat"),
    ],
)
def test_what_cannot_be_stacked_is_trained_alone_and_said(changed, words):
    recipe = trainer(**changed)
    sets = subsets(3)
    with pytest.warns(SequentialTrainingWarning, match=words):
        found = train_many(recipe, sets, range(3))
    assert_same(recipe, found, [recipe.train(s, seed) for seed, s in enumerate(sets)])


def test_a_model_depends_on_subset_and_seed_only():
    recipe, subset = trainer(), subsets(1)[0]
    torch.manual_seed(3)
    first = recipe.train(subset, 5)
    state = torch.get_rng_state()
    again = recipe.train(subset[::-1], 5)  # the same set, listed otherwise
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = recipe.train(subset, 6)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_orders_and_seeds_differ_between_epochs_rows_and_runs():
    subset = np.arange(50)
    orders = {
        tuple(batch_order(subset, seed, epoch, 80)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    assert all(sorted(order) == subset.tolist() for order in orders)
    assert len({run_seed(0, i, r) for i in range(20) for r in range(20)}) == 400
    assert run_seed(0, 1, 2) == run_seed(0, 1, 2)


def test_the_number_at_once_is_bounded_by_memory(monkeypatch):
    recipe = trainer()
    assert models_at_once(recipe, torch.device("cpu")) == 64
    monkeypatch.setattr("coarlib.retraining.vectorised.free_bytes", lambda device: 1)
    assert models_at_once(recipe, torch.device("cpu")) == 1


def test_seeds_of_any_whole_kind_are_the_same_and_others_are_refused():
    recipe, subset = trainer(), np.arange(20)
    wanted = recipe.train(subset, 3).state_dict()
    for seed in (np.int64(3), np.uint8(3), torch.tensor(3)):
        assert_equal_states(recipe.train(subset, seed).state_dict(), wanted)
    (found,) = train_many(recipe, [subset], np.arange(3, 4))
    assert_equal_states(found.state_dict(), wanted)
    for seed in (1.5, None, "3", -1, 2**63):
        with pytest.raises(TaskError, match="a seed must be"):
            recipe.train(subset, seed)
    with pytest.raises(TaskError, match="at_once must be at least 1"):
        train_many(recipe, [subset], [0], at_once=-1)


def assert_equal_states(found, wanted):
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_bad_settings_are_named():
    with pytest.raises(TaskError, match="unknown schedule 'step'"):
        trainer(schedule="step")
    with pytest.raises(TaskError, match="2 subsets but 1 seeds"):
        train_many(trainer(), subsets(2), [0])
    with pytest.raises(TaskError, match="no batch of 16"):
        trainer(drop_last=True).train(np.arange(5), 0)
    with pytest.raises(TaskError, match="120 inputs but 119 targets"):
        Trainer(mlp, torch.ones(120, 36), torch.ones(119), 1)

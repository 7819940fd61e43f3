"""First weights drawn side by side are those that each seed alone draws."""

import random
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.errors import TaskError
from coarlib.retraining import Trainer, initial, train_many
from coarlib.retraining.initial import initial_models
from coarlib.retraining.purity import difference
from coarlib.retraining.randomness import random_state, seeded

CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Draws in the ways that constructors do."""

    def __init__(self, elsewhere=None):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(30, 20), nn.Conv2d(3, 8, 3), nn.Embedding(9, 5)])
        self.layers.append(nn.LSTM(4, 6))
        self.attention = nn.MultiheadAttention(8, 2)
        self.free = nn.Parameter(torch.randn(7) + torch.rand(7))
        self.register_buffer("order", torch.randperm(30))
        self.cut = nn.Parameter(nn.init.trunc_normal_(torch.empty(40)))
        nn.init.orthogonal_(self.layers[0].weight)
        nn.init.kaiming_normal_(self.layers[1].weight)
        if elsewhere is not None:
            self.register_buffer("elsewhere", elsewhere())


def own_seed():
    torch.manual_seed(5)
    return torch.randn(3)


ELSEWHERE = {
    "nowhere else": None,
    "numpy": lambda: torch.from_numpy(np.random.standard_normal(3)),  # noqa: NPY002
    "python": lambda: torch.tensor([random.random()]),
    "torch, without a generator": lambda: nn.functional.dropout(torch.ones(50)),
    "a seed of its own": own_seed,
}


@pytest.fixture(params=ELSEWHERE)
def make(request, monkeypatch):
    monkeypatch.setattr(initial, "_WORTH", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return lambda: Mixed(ELSEWHERE[request.param])


def test_models_are_those_made_alone_and_generators_stay(make):
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    before = random_state()
    found = initial_models(make, seeds, CPU)
    assert random_state() == before
    for seed, model in zip(seeds, found, strict=True):
        with seeded(seed):
            alone = make().state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in model.state_dict().items())


def test_they_are_drawn_side_by_side_where_nothing_else_draws(monkeypatch):
    drawn = initial._side_by_side(Mixed, range(6), 3, CPU)
    assert drawn is not None and len(drawn) == 6
    assert initial._side_by_side(lambda: Mixed(own_seed), range(6), 3, CPU) is None


def briefly_double():
    """As Transformers sets its dtype: for the whole process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made = nn.Linear(30, 20)
        time.sleep(0.001)
        made.more = nn.Linear(20, 30)
    finally:
        torch.set_default_dtype(before)
    return made


def without_initialisers():
    """As Transformers and accelerate load: torch's own functions are replaced for a while."""
    before = nn.init.uniform_
    nn.init.uniform_ = lambda tensor, *_, **__: tensor
    try:
        made = nn.Embedding(5, 4)
        time.sleep(0.001)
        nn.Linear(4, 4)
    finally:
        nn.init.uniform_ = before
    return made


@pytest.mark.parametrize("make", [briefly_double, without_initialisers])
def test_constructors_that_change_what_threads_share_run_one_after_another(monkeypatch, make):
    monkeypatch.setattr(initial, "_WORTH", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    side_by_side = []
    monkeypatch.setattr(initial, "_side_by_side", lambda *given: side_by_side.append(given))
    before = torch.get_default_dtype(), nn.init.uniform_
    models = initial_models(make, range(8), CPU)
    assert not side_by_side and (torch.get_default_dtype(), nn.init.uniform_) == before
    for seed, model in enumerate(models):
        with seeded(seed):
            alone = make().state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in model.state_dict().items())
    initial_models(Mixed, range(8), CPU)
    assert side_by_side


def older_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(30, 20)), nn.Tanh(), nn.Linear(20, 3))


UNUSUAL = {
    "lazy": lambda: nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)),
    "older weight_norm": older_weight_norm,
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(30, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(30, 3)),
    "compiled": lambda: torch.compile(nn.Linear(30, 3), backend="eager"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_unusual_models_are_those_trained_alone(monkeypatch, kind):
    monkeypatch.setattr(initial, "_WORTH", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    inputs, labels = torch.randn(20, 30), torch.arange(20) % 3
    trainer = Trainer(UNUSUAL[kind], inputs, labels, epochs=2, batch_size=10)
    subsets = [np.arange(k, 20, 2) for k in (0, 1)]
    many = train_many(trainer, subsets, [4, 5])
    for model, subset, seed in zip(many, subsets, [4, 5], strict=True):
        alone = trainer.train(subset, seed)
        assert torch.allclose(model(inputs), alone(inputs), atol=1e-5)


def test_a_model_without_numbers_is_refused_in_a_sentence():
    trainer = Trainer(
        lambda: nn.Linear(3, 3, device="meta"), torch.zeros(8, 3), torch.arange(8) % 3,
        epochs=1, batch_size=4,
    )  # fmt: skip
    with pytest.raises(TaskError, match=r"a step of training fails: .*meta tensor"):
        train_many(trainer, [np.arange(8)] * 2, [0, 1])


@pytest.mark.parametrize(("a", "b", "same"), [
    ([torch.nan, 1.0], [torch.nan, 1.0], True), ([torch.nan, 1.0], [0.0, 1.0], False),
    ([torch.inf], [torch.inf], True), ([torch.inf], [1.0], False), ([1.0], [1.0 + 1e-7], True),
])  # fmt: skip
def test_what_is_not_finite_differs_from_what_is(a, b, same):
    found = difference({"x": torch.tensor(a)}, {"x": torch.tensor(b)}, 1e-4)
    assert found == (None if same else "x")
    assert difference({"x": torch.tensor(a)}, {"x": torch.tensor(a).double()}, 1e-4) == "x"


def test_what_a_model_raises_is_raised(monkeypatch):
    monkeypatch.setattr(initial, "_WORTH", 0)
    made = []

    def once():
        made.append(1)
        if len(made) > 1:
            raise ValueError("no second one")
        return nn.Linear(2, 2)

    with pytest.raises(ValueError, match="no second one"):
        initial_models(once, range(4), CPU)

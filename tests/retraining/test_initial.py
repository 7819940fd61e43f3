"""First weights drawn side by side are those that each seed alone draws."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.retraining import initial
from coarlib.retraining.initial import initial_models
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

"""Interactions measured by four ablations a context: values, intervals, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import coarlib as cl
from coarlib.baselines.interactions import confirm
from coarlib.errors import ScoringError
from coarlib.regression.surrogate import Interactions, fit_surrogate

KEEP, UNITS = 0.8, 10


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, UNITS), nn.ReLU(), nn.Linear(UNITS, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    with torch.no_grad():
        net[0].weight.mul_(3), net[2].weight.mul_(3)
    made = cl.ablate(net, (torch.randn(5, 6), torch.arange(5) % 3), "linear_row", include="0")
    made.prepare(torch.device("cpu"))
    return made


def pairs(target, first, second, effect):
    return Interactions(target, np.array(first), np.array(second), np.array(effect, float))


def outputs(task, masks):
    return task.rows(np.arange(len(masks)), masks)["test_margins"].numpy().astype(float)


def exact(task, target, one, other):
    """The mean second difference over every context."""
    masks = ((np.arange(2**UNITS)[:, None] >> np.arange(UNITS)) & 1).astype(bool)
    y = outputs(task, masks)[:, target]
    rest = np.delete(masks, [one, other], 1)
    share = np.where(rest, KEEP, 1 - KEEP).prod(1)
    sign = np.where(masks[:, one] == masks[:, other], 1, -1)
    return (sign * share * y).sum()


def test_intervals_over_contexts_cover_the_mean_over_all_of_them(task):
    rng = np.random.default_rng(0)
    chosen = [tuple(rng.choice(UNITS, 2, replace=False)) for _ in range(6)]
    first, second = zip(*chosen, strict=True)
    truth = np.array([exact(task, 2, *pair) for pair in chosen])
    covered = []
    for seed in range(60):
        found = confirm(pairs(2, first, second, truth), task, KEEP, contexts=16, seed=seed)
        covered.append((found.low <= truth) & (truth <= found.high))
    assert found.rows == 6 * 4 * 16
    assert 0.9 <= np.mean(covered) <= 0.99
    many = confirm(pairs(2, first, second, truth), task, KEEP, contexts=3000)
    assert np.allclose(many.effect, truth, atol=4 * (many.high - truth).max() / 1.96)


def test_the_strongest_predictions_of_a_surrogate_are_confirmed(task):
    masks = np.random.default_rng(1).random((500, UNITS)) < KEEP
    surrogate = fit_surrogate(masks, outputs(task, masks), np.ones(UNITS))
    predicted = surrogate.interactions(0, top=8)
    found = confirm(predicted, task, KEEP, contexts=32)
    assert found.confirmed[:4].all() and "confirmed by 1024 rows" in repr(found)
    assert np.corrcoef(found.effect, predicted.effect)[0, 1] > 0.9
    wrong = pairs(0, predicted.first, predicted.second, -predicted.effect)
    assert not confirm(wrong, task, KEEP, contexts=32).confirmed.any()


def test_what_does_not_fit_is_refused(task):
    one = pairs(0, [1], [2], [0.1])
    with pytest.raises(ScoringError, match="at least 2 contexts"):
        confirm(one, task, KEEP, contexts=1)
    for other in (pairs(0, [1], [UNITS], [0.1]), pairs(9, [1], [2], [0.1])):
        with pytest.raises(ScoringError, match="other components or targets"):
            confirm(other, task, KEEP)

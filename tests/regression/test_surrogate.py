"""The surrogate of all orders: its parts by enumeration, its choice by refitting, what it gains."""

import itertools

import numpy as np
import pytest
from test_bayes import World

import coarlib as cl
from coarlib.errors import RegressionError
from coarlib.regression import surrogate
from coarlib.regression.heldout import score_arrays
from coarlib.regression.rows import ArrayRows
from coarlib.regression.split import split_rows
from coarlib.regression.surrogate import (
    Surrogate,
    fit_surrogate,
    surrogate_and_score,
    surrogate_of,
)


def pairs_of(seed, features=12, rows=300, keep=0.8):
    """Outputs with main effects and a few strong pair interactions; masks, outputs, truth."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(features, 3))
    pairs = {(1, 4): 3.0, (2, 7): -2.5}

    def truth(masks):
        x = masks.astype(float)
        return x @ weight + sum(v * (x[:, a] * x[:, b])[:, None] for (a, b), v in pairs.items())

    masks = rng.random((rows, features)) < keep
    return masks, truth, weight, pairs


def test_orders_are_expected_differences_under_the_design():
    masks, truth, _, _ = pairs_of(0, features=8, rows=40)
    found = fit_surrogate(masks, truth(masks), np.linspace(0.5, 2, 8), np.ones((8, 3)))
    every = np.array(list(itertools.product([False, True], repeat=8)))
    chance = np.where(every, found.kept, 1 - found.kept)

    def mean(fixed):
        chosen = every.copy()
        chosen[:, list(fixed)] = list(fixed.values())
        free = [j for j in range(8) if j not in fixed]
        weights = chance[:, free].prod(1) / 2 ** len(fixed)
        return weights @ found.predict(chosen)

    for j in range(8):
        assert np.allclose(found.weight[j], mean({j: True}) - mean({j: False}))
    shown = found.interactions(1, top=15)
    assert len(shown) == 15 and (np.diff(np.abs(shown.effect)) <= 0).all()
    for a, b, effect in zip(shown.first, shown.second, shown.effect, strict=True):
        corners = {(p, q): mean({a: p, b: q})[1] for p in (0, 1) for q in (0, 1)}
        expected = corners[1, 1] - corners[1, 0] - corners[0, 1] + corners[0, 0]
        assert effect == pytest.approx(expected)
    assert "interaction" in repr(shown)


def test_leave_one_out_is_what_refitting_gives(monkeypatch):
    masks, truth, _, _ = pairs_of(1, rows=25)
    y = truth(masks) + np.random.default_rng(0).normal(size=(25, 3))
    y -= y.mean(0)
    kernel = np.exp(-0.2 * surrogate._distance(masks, masks, np.ones(12)))
    monkeypatch.setattr(surrogate, "PENALTIES", np.array([0.3]))
    error, _ = surrogate._best_ridge(kernel, y, np.ones(3))
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    penalty = 0.3 * np.trace(centred) / 25
    squares = []
    for left in range(25):  # kernel ridge with a free mean on the other rows
        rest = np.delete(np.arange(25), left)
        system = np.zeros((25, 25))
        system[:24, :24] = kernel[np.ix_(rest, rest)] + penalty * np.eye(24)
        system[:24, 24] = system[24, :24] = 1
        solved = np.linalg.solve(system, np.concatenate([y[rest], np.zeros((1, 3))]))
        squares.append(np.square(y[left] - kernel[left, rest] @ solved[:24] - solved[24]).mean())
    assert error == pytest.approx(np.mean(squares))


def test_it_predicts_better_where_components_interact_and_names_the_pairs():
    masks, truth, _, pairs = pairs_of(2)
    fresh = pairs_of(9)[0]
    linear = cl.fit(masks, truth(masks), "ridge", device="cpu")
    found = surrogate_of(masks, truth(masks))

    def left(predict):
        return np.square(predict(fresh) - truth(fresh)).mean()

    assert left(found.predict) < 0.3 * left(linear.predict)
    top = found.interactions(0, top=2)
    assert set(zip(top.first.tolist(), top.second.tolist(), strict=True)) == set(pairs)
    for a, b, effect in zip(top.first, top.second, top.effect, strict=True):
        assert effect == pytest.approx(pairs[a, b], rel=0.35)
    x = fresh.astype(float)
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))], truth(fresh), rcond=None)[0]
    share = (truth(fresh) - np.c_[x, np.ones(len(x))] @ best).var(0) / truth(fresh).var(0)
    assert np.allclose(found.not_linear(), share, atol=0.05)
    assert np.abs(found.weight - best[:-1]).max() < 0.4


def test_where_all_is_linear_little_is_not():
    masks, _, weight, _ = pairs_of(3)
    found = surrogate_of(masks, masks @ weight)
    assert found.not_linear().max() < 0.01
    assert np.abs(found.weight - weight).max() < 0.1


def test_a_fit_keeps_it_with_its_own_held_out_score():
    masks, truth, _, _ = pairs_of(6, rows=120)
    source = ArrayRows(masks, truth(masks))
    split = split_rows(source, 100, 20)
    found, scores = surrogate_and_score(source, split)
    alone = surrogate_of(masks[:100], truth(masks)[:100])
    expected = score_arrays(alone.predict(masks[100:]).astype("f4"), truth(masks)[100:])
    assert scores.mean == pytest.approx(expected.mean, abs=1e-6) and len(found.masks) == 120


def test_gradient_passes_are_what_it_is_about():
    world = World(4, rows=60)
    found = surrogate_of(world.masks, world.outputs, world.passes)
    rows = surrogate_of(world.masks, world.outputs)
    error = [np.square(x.weight - world.weight).mean() for x in (found, rows)]
    assert error[0] < 0.6 * error[1]


def test_it_is_saved_and_what_does_not_fit_is_refused(tmp_path):
    masks, truth, _, _ = pairs_of(5, rows=30)
    found = surrogate_of(masks, truth(masks))
    found.save(tmp_path / "surrogate.npz")
    again = Surrogate.load(tmp_path / "surrogate.npz")
    assert np.array_equal(again.predict(masks), found.predict(masks))
    with pytest.raises(RegressionError, match="target 3 of 3"):
        found.interactions(3)
    with pytest.raises(RegressionError, match=r"must be \[B, 12\]"):
        found.predict(masks[:, :4])
    with pytest.raises(RegressionError, match="at least 8 rows"):
        surrogate_of(masks[:5], truth(masks[:5]))
    with pytest.raises(RegressionError, match="no output varies"):
        fit_surrogate(masks, np.ones((30, 2)), np.ones(12))
    with pytest.raises(RegressionError, match="variances must be"):
        fit_surrogate(masks, truth(masks), np.ones(4))
    np.savez(tmp_path / "other.npz", masks=masks)
    with pytest.raises(RegressionError, match="is no surrogate"):
        Surrogate.load(tmp_path / "other.npz")

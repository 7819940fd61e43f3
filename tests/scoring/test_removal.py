"""Removal curves and brittleness on a model whose output is a sum."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.scoring import brittleness, removal_curve, removal_masks

SCORES = np.random.default_rng(0).standard_normal((40, 7))


def summed(masks, targets):
    return np.einsum("bn,nb->b", masks, SCORES[:, targets])


@pytest.mark.parametrize("order", ["highest", "lowest"])
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_curves_remove_the_extreme_scores_of_each_target(order, batch_size):
    ks = [0, 1, 5, 40]
    curve = removal_curve(SCORES, summed, ks, order, batch_size=batch_size)
    for target in range(7):
        ordered = np.sort(SCORES[:, target])
        ordered = ordered[::-1] if order == "highest" else ordered
        expected = [ordered[k:].sum() for k in ks]
        np.testing.assert_allclose(curve.outputs[:, target], expected, atol=1e-12)
    np.testing.assert_allclose(curve.mean, curve.outputs.mean(axis=1))
    middle = (curve.outputs[1:] + curve.outputs[:-1]) / 2
    np.testing.assert_allclose(curve.area, np.diff(ks) @ middle / 40)


def test_random_order_is_nested_and_a_function_of_seed_and_target():
    masks = removal_masks(SCORES, [5, 10, 10], [3, 3, 4], "random", seed=1)
    assert (~masks[0] <= ~masks[1]).all()
    assert (masks[1] != masks[2]).any()
    np.testing.assert_array_equal(masks[2:], removal_masks(SCORES, [10], [4], "random", seed=1))
    assert (masks[2] != removal_masks(SCORES, [10], [4], "random", seed=2)[0]).any()


def test_equal_scores_go_in_the_order_of_their_index():
    scores = np.array([[1.0], [2.0], [2.0], [1.0]])
    assert removal_masks(scores, [1, 3], [0, 0]).tolist() == [[1, 0, 1, 1], [0, 0, 0, 1]]
    assert removal_masks(scores, [1, 3], [0, 0], "lowest").tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]


@pytest.mark.parametrize("batch_size", [2, 100])
def test_brittleness_is_the_first_size_that_flips(batch_size):
    threshold = SCORES.sum(axis=0) - np.linspace(1, 40, 7)
    calls = []

    def flips(masks, targets):
        calls.append(targets)
        return summed(masks, targets) < threshold[targets]

    ks = list(range(0, 15))
    found = brittleness(SCORES, flips, ks, batch_size=batch_size)
    for target in range(7):
        top = np.sort(SCORES[:, target])[::-1]
        flipped = [k for k in ks if top[k:].sum() < threshold[target]]
        assert found[target] == (flipped[0] if flipped else np.inf)
    assert np.isinf(found).any()
    assert max(map(len, calls)) <= batch_size
    assert sum(map(len, calls)) == sum(min(int(min(k, 14)), 14) + 1 for k in found)


def test_bad_removals_are_named():
    holed = SCORES.copy()
    holed[3, 2] = np.nan
    for call, words in (
        (lambda: removal_curve(SCORES, summed, [41]), "cannot remove 41 to 41 of 40"),
        (lambda: removal_curve(SCORES, summed, [3, 3]), "ascending"),
        (lambda: removal_curve(SCORES, summed, []), "at least one"),
        (lambda: removal_curve(SCORES, summed, [1], "top"), "unknown order 'top'"),
        (lambda: removal_curve(SCORES, lambda m, t: 0.0, [1]), "one value a mask"),
        (lambda: brittleness(holed, summed, [1]), "target 2 has NaN scores"),
        (lambda: brittleness(SCORES[0], summed, [1]), r"must be \[N, T\]"),
    ):
        with pytest.raises(ScoringError, match=words):
            call()

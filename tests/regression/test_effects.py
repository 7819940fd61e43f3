"""Effects of sets: which features a name means, errors that go together, what is said of them."""

import numpy as np
import pytest

import coarlib as cl
from coarlib.ablation import ComponentSet, slice_components
from coarlib.errors import ArgumentError, RegressionError
from coarlib.regression import Attributions
from coarlib.regression.heldout import score_arrays

NAMES = ["layer1.weight[0]", "layer1.weight[1]", "layer2.weight[0]"]


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4000, 1, 2))
    draws = np.concatenate([common, -common, rng.normal(size=(4000, 1, 2))], 1)
    return Attributions(
        weight=np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        bias=np.zeros(2),
        lam=np.zeros(2),
        mean_mask=np.full(3, 0.9),
        gap=np.zeros(2),
        error_feature=np.array([[1.0, 2], [1, 3], [2, 2]]),
        draws=draws.astype(np.float16),
        components=ComponentSet(slice_components({name: ["w[0]"] for name in NAMES})).to_json(),
    )


def test_errors_of_a_set_are_those_of_a_sum(found, tmp_path):
    both = found.effect("layer1.*")
    assert both.index.tolist() == [0, 1] and both.value.tolist() == [4, 6]
    assert np.allclose(both.error, [0, 1], atol=0.05)  # errors of the pair cancel
    low, high = both.interval()
    assert np.allclose(high - both.value, both.value - low)
    assert high[1] - 6 == pytest.approx(1.96 * both.error[1], rel=0.01)
    one = found.effect("layer1.weight[1]")  # a whole name, though it reads as a pattern
    assert one.index.tolist() == [1] and one.error.tolist() == [1, 3]
    assert found.targets([1]).effect("layer1.*").error == pytest.approx(both.error[1:])
    found.save(tmp_path / "out")
    again = cl.Attributions.load(tmp_path / "out").effect([0, 1])
    assert np.allclose(again.error, both.error)


def test_what_is_not_known_is_said(found):
    text = repr(found.effect("layer*"))
    assert "keeping layer* (3)" in text and "95% interval" not in text  # all features
    assert "95% interval" in repr(found.effect("layer1.*"))
    assert "how linear they are was not checked" in text
    found.draws = None
    assert found.effect("layer1.*").error is None
    assert np.isnan(found.effect("layer1.*").interval()[0]).all()
    with pytest.raises(RegressionError, match=r"no feature is named layer3.weight\[0\]"):
        found.effect("layer3.weight[0]")
    rng = np.random.default_rng(0)
    masks = rng.random((200, 5)) < 0.8
    outputs = masks @ rng.normal(size=(5, 3)) + 0.1 * rng.normal(size=(200, 3))
    fitted = cl.fit(masks, outputs, "least_squares", device="cpu").effect([0, 1])
    assert 0 < fitted.unexplained < 0.1
    assert "of the variance of held-out outputs is not explained by weights" in repr(fitted)


def test_a_set_has_each_feature_once(found):
    assert found.effect([0, 1, 1, 0]).index.tolist() == [0, 1]
    assert found.effect([1, 1]).value.tolist() == [3, 4]


def test_intervals_of_some_targets_are_those_of_all(found):
    """Also the factor by which groups may be off, which held-out rows of all targets tell."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(40, 2))
    found.held_out = score_arrays(1.5 * outputs + 0.1 * rng.normal(size=(40, 2)), outputs)
    whole, some = found.effect("layer1.*"), found.targets([1]).effect("layer1.*")
    assert whole.error[1] > 1.5 and np.array_equal(some.error, whole.error[1:])
    assert np.array_equal(found.targets([1]).targets([0]).effect("layer1.*").error, some.error)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, np.nan, "0.9", None])
def test_levels_that_are_no_probabilities_are_refused(found, level):
    with pytest.raises(ArgumentError, match="level must be a probability between 0 and 1"):
        found.effect("layer1.*").interval(level)

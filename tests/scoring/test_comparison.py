"""The paired difference of two methods: by hand, its coverage, and what it refuses."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.scoring import compare, lds


def case(seed=0, subsets=60, examples=80, targets=20, better=0.3):
    """Outputs of true effects, and two noisy guesses of these, A with less noise."""
    rng = np.random.default_rng(seed)
    effects = rng.standard_normal((examples, targets))
    masks = rng.random((subsets, examples)) < 0.5
    outputs = masks @ effects + 3 * rng.standard_normal((subsets, targets))
    a = effects + (1.5 - better) * rng.standard_normal(effects.shape)
    return a, effects + 1.5 * rng.standard_normal(effects.shape), masks, outputs


def test_sign_and_size_are_those_of_two_scores_by_hand():
    a, b, masks, outputs = case()
    one, two = lds(a, masks, outputs), lds(b, masks, outputs)
    found = compare(one, two)
    assert found.difference == one.mean - two.mean
    assert found.interval.low < found.difference < found.interval.high
    swapped = compare(two, one)
    assert swapped.difference == -found.difference and swapped.p == found.p
    assert (found.p < 0.05) == (found.interval.low > 0 or found.interval.high < 0)
    widths = [i.high - i.low for i in (found.interval, one.interval, two.interval)]
    assert widths[0] < np.hypot(widths[1], widths[2])  # pairing helps
    same = compare(one, one)
    assert (same.difference, same.p) == (0, 1)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("better", [0.0, 0.3])
def test_the_interval_of_a_difference_covers_and_p_is_uniform_without_one(kind, better):
    rng = np.random.default_rng(7)
    effects = rng.standard_normal((80, 20))
    a = effects + (1.5 - better) * rng.standard_normal(effects.shape)
    b = effects + 1.5 * rng.standard_normal(effects.shape)
    found = []
    for _ in range(200):
        masks = rng.random((50, 80)) < 0.5
        outputs = masks @ effects + 3 * rng.standard_normal((50, 20))
        scored = [lds(scores, masks, outputs, kind) for scores in (a, b)]
        found.append(compare(*scored))
    truth = np.mean([result.difference for result in found])
    covered = np.mean([r.interval.low <= truth <= r.interval.high for r in found])
    assert 0.90 <= covered <= 0.985


def test_what_cannot_be_compared_is_refused_with_the_difference_named():
    a, b, masks, outputs = case()
    one = lds(a, masks, outputs)
    for other, words in (
        (lds(b, masks[1:], outputs[1:]), r"number of subsets \(60 and 59\)"),
        (lds(b, masks, outputs, "pearson"), r"correlation \(spearman and pearson\)"),
        (lds(b, ~masks | (np.arange(80) < 40), outputs), r"fraction that is kept \(50"),
        (lds(b, masks, outputs + 1), "masks and outputs themselves"),
        (lds(b, masks, outputs, interval=False), "interval=False"),
    ):
        with pytest.raises(ScoringError, match=words):
            compare(one, other)
    gap = b.copy()
    gap[:, 3] = np.nan
    with pytest.warns(UserWarning):
        partial = lds(gap, masks, outputs)
    with pytest.raises(ScoringError, match=r"for 1 targets \(target 3\); leave these out of both"):
        compare(one, partial)


def test_too_few_rows_say_so():
    a, b, masks, outputs = case(subsets=10)
    found = compare(lds(a, masks, outputs), lds(b, masks, outputs))
    assert "too few for an interval" in repr(found) and np.isnan(found.p)

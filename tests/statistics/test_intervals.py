"""Intervals: influences by leaving rows out by hand, coverage by simulation, words for few rows."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.regression import score_arrays
from coarlib.scoring import correlate, correlation_interval
from coarlib.statistics.influence import influences
from coarlib.statistics.intervals import (
    FEWEST_ROWS,
    MeanInfluence,
    correlation_limits,
    difference_interval,
    draws,
    mean_influence,
    rows_of,
    standard_error,
)

KINDS = ["spearman", "pearson", "kendall"]
TOLERANCE = 1e-12


def pair(count=60, targets=5, digits=1, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((count, targets))
    return a.round(digits), (0.7 * a + rng.standard_normal((count, targets))).round(digits)


def noisy(rng, rows, targets, strength, shared=0.0):
    """Predictions and outputs of known correlation; targets may share a part of the noise."""
    a = rng.standard_normal((rows, targets))
    noise = np.sqrt(1 - shared) * rng.standard_normal((rows, targets))
    noise += np.sqrt(shared) * rng.standard_normal((rows, 1))
    return a, strength * a + np.sqrt(1 - strength**2) * noise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("digits", [0, 1, 9])
def test_influences_are_those_of_leaving_each_row_out(kind, digits):
    a, b = pair(digits=digits)
    left = np.stack(
        [correlate(*(np.delete(x, row, axis=0) for x in (a, b)), kind).r for row in range(60)], 1
    )
    expected = 59 * (left.mean(axis=1, keepdims=True) - left)
    found = influences(rows_of(a, kind), rows_of(b, kind), kind)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    np.testing.assert_allclose(mean_influence(a, b, kind).influence, expected.mean(0), atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_correlation_that_hangs_on_one_row_is_uncertain(kind):
    a = np.zeros((40, 1))
    a[7] = 1
    b = a + 1e-3 * np.random.default_rng(0).standard_normal((40, 1))
    found = mean_influence(a, b, kind)
    assert np.abs(found.influence).argmax() == 7
    assert found.influence[7] == pytest.approx(39**2 / 40 * found.estimate, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_standard_errors_are_how_far_scores_scatter_over_new_rows(kind):
    rng = np.random.default_rng(0)
    scores = [correlate(*noisy(rng, 100, 20, 0.5), kind).r.mean() for _ in range(400)]
    found = [
        standard_error(mean_influence(*noisy(rng, 100, 20, 0.5), kind).influence) for _ in range(20)
    ]
    assert abs(np.mean(found) / np.std(scores) - 1) < 0.1


def test_draws_scatter_and_move_together_as_the_influences_say():
    influence = np.random.default_rng(0).standard_normal((2, 50))
    influence[1] += influence[0]
    influence -= influence.mean(axis=1, keepdims=True)
    drawn = draws(np.array([0.3, 0.5]), influence, 20_000)
    np.testing.assert_allclose(drawn.mean(axis=1), [0.3, 0.5], atol=0.01)
    np.testing.assert_allclose(np.cov(drawn), influence @ influence.T / (50 * 49), rtol=0.1)


def test_blocks_of_targets_add_up():
    a, b = pair(targets=9)
    whole, parts = mean_influence(a, b), MeanInfluence(60)
    for piece in (slice(0, 4), slice(4, 9)):
        r = correlate(a[:, piece], b[:, piece]).r
        parts.add(rows_of(a[:, piece], "spearman"), rows_of(b[:, piece], "spearman"), r)
    np.testing.assert_allclose(parts.influence, whole.influence, atol=TOLERANCE)
    assert abs(parts.estimate - whole.estimate) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "targets", "kind", "strength", "shared"),
    [
        (50, 100, "spearman", 0.5, 0.0),
        (50, 100, "kendall", 0.6, 0.3),
        (50, 300, "pearson", 0.9, 0.3),
        (50, 100, "pearson", 0.9, 0.9),
        (100, 100, "spearman", 0.9, 0.3),
        (100, 300, "pearson", 0.5, 0.0),
    ],
)
def test_an_interval_covers_the_expected_score(rows, targets, kind, strength, shared):
    rng = np.random.default_rng(1)
    scores, intervals = [], []
    for _ in range(500):
        a, b = noisy(rng, rows, targets, strength, shared)
        scores.append(correlate(a, b, kind).r.mean())
        intervals.append(correlation_interval(a, b, kind))
    truth = np.mean(scores)
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.92 <= covered <= 0.98  # 95% within three standard errors of 500 trials


def test_skewed_influences_are_missed_as_often_above_as_below():
    """The mean of 60 squares of normal values less their mean: a skewness of 2.8 a row."""
    rng = np.random.default_rng(3)
    values = 0.05 * (rng.standard_normal((20_000, 60)) ** 2 - 1)
    mean = values.mean(axis=1)
    low, high = correlation_limits(mean, values - mean[:, None])
    assert np.mean(low > 0) < 0.04 and np.mean(high < 0) < 0.04
    assert 0.935 <= np.mean((low <= 0) & (high >= 0)) <= 0.965
    one, p = difference_interval(mean[0], values[0] - mean[0])
    assert (p < 0.05) == (one.low > 0 or one.high < 0)


def test_p_is_below_a_level_where_the_interval_leaves_zero_out():
    rng = np.random.default_rng(4)
    for _ in range(200):
        influence = rng.standard_exponential(30)
        influence -= influence.mean()
        for level in (0.5, 0.95):
            interval, p = difference_interval(0.3 * rng.standard_normal(), influence, level)
            assert (p < 1 - level) == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize("rows", [FEWEST_ROWS, 50, 100, 500])
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 0.99])
def test_the_interval_of_one_held_out_target_covers(rows, strength):
    rng = np.random.default_rng(2)
    a, b = noisy(rng, rows, 4000, strength)
    held = score_arrays(a, b)
    covered = np.mean((held.low <= strength) & (strength <= held.high))
    assert 0.93 <= covered <= 0.97


def test_held_out_scores_have_the_same_interval():
    a, b = pair(count=80, digits=3)
    held = score_arrays(a, b)
    same = correlation_interval(a, b, "pearson")
    np.testing.assert_allclose([held.mean_low, held.mean_high], [same.low, same.high], atol=1e-9)
    alone = correlation_interval(a[:, :1], b[:, :1], "pearson")
    np.testing.assert_allclose([held.low[0], held.high[0]], [alone.low, alone.high], atol=1e-9)


@pytest.mark.parametrize("rows", [2, 3, FEWEST_ROWS - 1])
def test_too_few_rows_have_no_interval_and_say_so(rows):
    a, b = pair(count=rows, digits=4)
    interval = correlation_interval(a, b)
    assert np.isnan([interval.low, interval.high]).all()
    assert str(interval) == "(too few for an interval)"
    held = score_arrays(a, b)
    assert np.isnan([held.mean_low, held.mean_high, *held.low, *held.high]).all()
    assert "too few for an interval" in str(held)


def test_limits_are_correlations_also_for_perfect_predictions():
    a = np.random.default_rng(0).standard_normal((30, 3))
    exact = correlation_interval(a, 2 * a + 1)
    assert (exact.low, exact.high) == (1, 1)
    nearly = correlation_interval(a, a + 0.03 * np.random.default_rng(1).standard_normal((30, 3)))
    assert 0.9 < nearly.low < nearly.high <= 1


def test_undefined_targets_are_left_out():
    a, b = pair(targets=3)
    b[:, 1] = 0
    a[5, 2] = np.nan
    assert correlation_interval(a, b) == correlation_interval(a[:, :1], b[:, :1])
    nothing = correlation_interval(a[:, 1:], b[:, 1:])
    assert np.isnan([nothing.low, nothing.high]).all()
    assert str(nothing) == "(no interval)"


def test_wrong_options_are_named():
    a, b = pair()
    for options, words in (
        ({"level": 95}, "between 0 and 1"),
        ({"kind": "r2"}, "unknown correlation"),
    ):
        with pytest.raises(ScoringError, match=words):
            correlation_interval(a, b, **options)

"""Intervals: replicates against subsampling by hand, coverage by simulation, words for few rows."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.regression import score_arrays
from coarlib.scoring import bootstrap_interval, correlate
from coarlib.statistics.bootstrap import FEWEST_ROWS, RowBootstrap, rows_of, subsamples

KINDS = ["spearman", "pearson", "kendall"]
TOLERANCE = 1e-12


def pair(count=60, targets=5, digits=1, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((count, targets))
    return a.round(digits), (0.7 * a + rng.standard_normal((count, targets))).round(digits)


def replicates(a, b, kind, **options):
    bootstrap = RowBootstrap(len(a), kind, **options)
    bootstrap.add(rows_of(a, kind), rows_of(b, kind), correlate(a, b, kind).r)
    return bootstrap


def noisy(rng, rows, targets, strength, shared=0.0):
    """Predictions and outputs of known correlation; targets may share a part of the noise."""
    a = rng.standard_normal((rows, targets))
    noise = np.sqrt(1 - shared) * rng.standard_normal((rows, targets))
    noise += np.sqrt(shared) * rng.standard_normal((rows, 1))
    return a, strength * a + np.sqrt(1 - strength**2) * noise


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicate_is_the_correlation_of_three_quarters_of_the_rows(kind):
    a, b = pair()
    bootstrap = replicates(a, b, kind, resamples=40, seed=3)
    parts = subsamples(60, 40, 3)
    assert (parts.sum(axis=1) == 45).all()
    by_hand = np.array([correlate(a[w == 1], b[w == 1], kind).r.mean() for w in parts])
    moved = correlate(a, b, kind).r.mean() + np.sqrt(3) * (by_hand - by_hand.mean())
    np.testing.assert_allclose(bootstrap.replicates, moved, atol=TOLERANCE)


def test_replicates_scatter_like_the_mean_of_new_rows():
    rng = np.random.default_rng(0)
    scores = [correlate(*noisy(rng, 100, 20, 0.5), "pearson").r.mean() for _ in range(400)]
    a, b = noisy(rng, 100, 20, 0.5)
    spread = replicates(a, b, "pearson", resamples=400).replicates.std()
    assert abs(spread / np.std(scores) - 1) < 0.2


def test_blocks_of_targets_add_up():
    a, b = pair(targets=9)
    whole = replicates(a, b, "spearman", resamples=20)
    parts = RowBootstrap(60, resamples=20)
    for piece in (slice(0, 4), slice(4, 9)):
        r = correlate(a[:, piece], b[:, piece]).r
        parts.add(rows_of(a[:, piece], "spearman"), rows_of(b[:, piece], "spearman"), r)
    np.testing.assert_allclose(parts.replicates, whole.replicates, atol=TOLERANCE)
    assert abs(parts.estimate - whole.estimate) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "targets", "kind", "strength", "shared"),
    [
        (50, 100, "spearman", 0.5, 0.0),
        (50, 100, "pearson", 0.9, 0.3),
        (100, 100, "spearman", 0.1, 0.3),
        (100, 1000, "pearson", 0.5, 0.0),
    ],
)
def test_an_interval_covers_the_expected_score(rows, targets, kind, strength, shared):
    rng = np.random.default_rng(1)
    scores, intervals = [], []
    for trial in range(200):
        a, b = noisy(rng, rows, targets, strength, shared)
        scores.append(correlate(a, b, kind).r.mean())
        intervals.append(bootstrap_interval(a, b, kind, resamples=100, seed=trial))
    truth = np.mean(scores)
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.90 <= covered <= 0.985  # 95% within three standard errors of 200 trials


@pytest.mark.parametrize("rows", [FEWEST_ROWS, 50, 100, 500])
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 0.99])
def test_the_interval_of_one_held_out_target_covers(rows, strength):
    rng = np.random.default_rng(2)
    a, b = noisy(rng, rows, 4000, strength)
    held = score_arrays(a, b)
    covered = np.mean((held.low <= strength) & (strength <= held.high))
    assert 0.93 <= covered <= 0.97


def test_held_out_scores_have_the_interval_of_the_bootstrap():
    a, b = pair(count=80, digits=3)
    held = score_arrays(a, b, seed=4)
    same = bootstrap_interval(a, b, "pearson", resamples=400, seed=4)
    np.testing.assert_allclose([held.mean_low, held.mean_high], [same.low, same.high], atol=1e-9)
    alone = bootstrap_interval(a[:, :1], b[:, :1], "pearson", resamples=400, seed=4)
    np.testing.assert_allclose([held.low[0], held.high[0]], [alone.low, alone.high], atol=1e-9)


@pytest.mark.parametrize("rows", [2, 3, FEWEST_ROWS - 1])
def test_too_few_rows_have_no_interval_and_say_so(rows):
    a, b = pair(count=rows, digits=4)
    interval = bootstrap_interval(a, b)
    assert np.isnan([interval.low, interval.high]).all()
    assert str(interval) == "(too few rows for an interval)"
    held = score_arrays(a, b)
    assert np.isnan([held.mean_low, held.mean_high, *held.low, *held.high]).all()
    assert "too few rows for an interval" in str(held)


def test_limits_are_correlations_also_for_perfect_predictions():
    a = np.random.default_rng(0).standard_normal((30, 3))
    exact = bootstrap_interval(a, 2 * a + 1)
    assert (exact.low, exact.high) == (1, 1)
    nearly = bootstrap_interval(a, a + 0.03 * np.random.default_rng(1).standard_normal((30, 3)))
    assert 0.9 < nearly.low < nearly.high <= 1


def test_an_interval_is_a_function_of_its_seed():
    a, b = pair()
    assert bootstrap_interval(a, b, seed=1) == bootstrap_interval(a, b, seed=1)
    assert bootstrap_interval(a, b, seed=1) != bootstrap_interval(a, b, seed=2)


def test_undefined_targets_are_left_out():
    a, b = pair(targets=3)
    b[:, 1] = 0
    a[5, 2] = np.nan
    assert bootstrap_interval(a, b) == bootstrap_interval(a[:, :1], b[:, :1])
    nothing = bootstrap_interval(a[:, 1:], b[:, 1:])
    assert np.isnan([nothing.low, nothing.high]).all()
    assert str(nothing) == "(no interval)"


def test_wrong_options_are_named():
    a, b = pair()
    for options, words in (
        ({"resamples": 1}, "at least 2 resamples"),
        ({"level": 95}, "between 0 and 1"),
        ({"kind": "r2"}, "unknown correlation"),
    ):
        with pytest.raises(ScoringError, match=words):
            bootstrap_interval(a, b, **options)

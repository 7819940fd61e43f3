"""Intervals: replicates against resampling, limits against scipy, coverage by simulation."""

import warnings

import numpy as np
import pytest
from scipy import stats

from coarlib.errors import ScoringError
from coarlib.scoring import bootstrap_interval, bootstrap_mean_interval, correlate
from coarlib.statistics.bootstrap import (
    RowBootstrap,
    UndefinedIntervalWarning,
    _resampling_weights,
    rows_of,
)

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicate_is_the_correlation_of_the_resampled_rows(kind):
    a, b = pair()
    found = replicates(a, b, kind, resamples=40, seed=3).replicates
    for weights, replicate in zip(_resampling_weights(60, 40, 3), found, strict=True):
        rows = np.repeat(np.arange(60), weights)
        assert abs(correlate(a[rows], b[rows], kind).r.mean() - replicate) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_textbook_intervals_agree_with_scipy(kind, method):
    a, b = pair(targets=1)
    mine = bootstrap_interval(a, b, kind, method=method, resamples=10_000)

    def statistic(rows):
        return correlate(a[rows.astype(int)], b[rows.astype(int)], kind).r[0]

    oracle = stats.bootstrap(
        (np.arange(60),),
        statistic,
        vectorized=False,
        n_resamples=5000,
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose([mine.low, mine.high], oracle, atol=0.02)


def test_blocks_of_targets_add_up():
    a, b = pair(targets=9)
    whole = replicates(a, b, "spearman", resamples=20)
    parts = RowBootstrap(60, resamples=20)
    for piece in (slice(0, 4), slice(4, 9)):
        r = correlate(a[:, piece], b[:, piece]).r
        parts.add(rows_of(a[:, piece], "spearman"), rows_of(b[:, piece], "spearman"), r)
    np.testing.assert_allclose(parts.replicates, whole.replicates, atol=TOLERANCE)
    assert abs(parts.estimate - whole.estimate) < TOLERANCE


def test_the_default_interval_covers_with_many_targets_where_percentile_does_not():
    kind = "spearman"
    rng = np.random.default_rng(0)
    estimates, intervals = [], {"centred": [], "percentile": []}
    for trial in range(60):
        a = rng.standard_normal((60, 300))
        b = 0.8 * a + 0.6 * rng.standard_normal((60, 300))
        estimates.append(correlate(a, b, kind).r.mean())
        for method, found in intervals.items():
            found.append(bootstrap_interval(a, b, kind, method=method, resamples=200, seed=trial))
    truth = np.mean(estimates)
    covered = {
        method: np.mean([interval.low <= truth <= interval.high for interval in found])
        for method, found in intervals.items()
    }
    assert covered["centred"] >= 0.87
    assert covered["percentile"] < 0.85


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


def test_a_bca_interval_that_does_not_exist_is_nan_and_says_so():
    a = np.random.default_rng(0).standard_normal((30, 800))
    b = a + 0.5 * np.random.default_rng(1).standard_normal((30, 800))
    with pytest.warns(UndefinedIntervalWarning, match="method='centred'"):
        interval = bootstrap_interval(a, b, method="bca", resamples=50)
    assert np.isnan([interval.low, interval.high]).all()
    assert str(bootstrap_interval(a, b)).startswith("[0.")


def test_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    for method in ("percentile", "bca"):
        mine = bootstrap_mean_interval(values, method=method, resamples=5000)
        oracle = stats.bootstrap(
            (values,), np.mean, n_resamples=5000, method=method, rng=np.random.default_rng(0)
        ).confidence_interval
        np.testing.assert_allclose([mine.low, mine.high], oracle, atol=0.01)
    with_nan = np.concatenate([values, [np.nan]])
    assert bootstrap_mean_interval(with_nan) == bootstrap_mean_interval(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(bootstrap_mean_interval([np.nan]).low)


def test_wrong_options_are_named():
    a, b = pair()
    for options, words in (
        ({"method": "basic"}, "unknown interval 'basic'"),
        ({"resamples": 0}, "positive"),
        ({"level": 95}, "between 0 and 1"),
        ({"kind": "r2"}, "unknown correlation"),
    ):
        with pytest.raises(ScoringError, match=words):
            bootstrap_interval(a, b, **options)

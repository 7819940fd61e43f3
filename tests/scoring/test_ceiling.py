"""The noise ceiling is what a perfect method reaches."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.scoring import UndefinedCorrelationWarning, correlate, noise_ceiling
from coarlib.scoring.ceiling import _splits


def noisy_runs(runs, noise, subsets=3000, targets=8, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((subsets, targets))
    return signal, signal[:, None] + noise * rng.standard_normal((subsets, runs, targets))


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 10])
@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_a_perfect_prediction_reaches_the_ceiling(runs, kind):
    signal, outputs = noisy_runs(runs, noise=2.0)
    perfect = correlate(signal, outputs.mean(axis=1), kind).r
    found = noise_ceiling(outputs, kind)
    assert found.num_runs == runs
    assert found.mean == pytest.approx(perfect.mean(), abs=0.015)


def test_reliability_predicts_the_correlation_with_fresh_runs():
    signal, outputs = noisy_runs(4, noise=1.5)
    _, fresh = noisy_runs(4, noise=1.5, seed=0)
    fresh = signal[:, None] + 1.5 * np.random.default_rng(9).standard_normal(outputs.shape)
    again = correlate(outputs.mean(axis=1), fresh.mean(axis=1), "pearson").r
    found = noise_ceiling(outputs, "pearson")
    np.testing.assert_allclose(found.reliability, again, atol=0.05)


@pytest.mark.parametrize("subsets", [30, 100, 200])
@pytest.mark.parametrize("signal", [0.0, 0.1, 0.25, 1.0, 4.0])
def test_the_ceiling_is_unbiased_and_its_interval_covers(subsets, signal):
    truth = np.sqrt(signal / (signal + 0.5))  # two runs, noise of variance 1
    found = []
    for trial in range(60):
        rng = np.random.default_rng([trial, subsets])
        common = np.sqrt(signal) * rng.standard_normal((subsets, 1, 100))
        outputs = common + rng.standard_normal((subsets, 2, 100))
        found.append(noise_ceiling(outputs, "pearson", seed=trial))
    mean = np.mean([ceiling.mean for ceiling in found])
    assert mean < 0.06 if signal == 0 else abs(mean / truth - 1) < 0.03
    covered = np.mean([c.interval.low <= truth <= c.interval.high for c in found])
    assert covered >= 0.86  # 95% within three standard errors of 60 trials


def test_runs_without_noise_have_a_ceiling_of_one():
    exact = np.repeat(np.random.default_rng(0).standard_normal((50, 1, 3)), 4, axis=1)
    found = noise_ceiling(exact)
    assert (found.mean, found.interval.low, found.interval.high) == (1, 1, 1)
    few = noise_ceiling(exact[:10])
    assert few.mean == 1 and "too few for an interval" in str(few.interval)


def test_subsets_with_a_failed_run_are_left_out():
    _, outputs = noisy_runs(4, noise=1.0, subsets=60)
    broken = outputs.copy()
    broken[7, 2] = np.nan
    expected = noise_ceiling(np.delete(outputs, 7, axis=0))
    assert noise_ceiling(broken).mean == expected.mean


@pytest.mark.parametrize(("runs", "number"), [(2, 1), (3, 3), (4, 3), (5, 15), (6, 10)])
def test_every_split_once_where_there_are_few(runs, number):
    splits = _splits(runs, 100, seed=0)
    assert len({frozenset(map(frozenset, split)) for split in splits}) == len(splits) == number
    assert all(not set(a) & set(b) and len(a) == len(b) == runs // 2 for a, b in splits)
    assert len(_splits(20, 7, seed=0)) == 7


def test_undefined_targets_and_single_runs():
    _, outputs = noisy_runs(4, noise=1.0, subsets=50)
    outputs[:, :, 3] = 0
    with pytest.warns(UndefinedCorrelationWarning, match="target 3"):
        found = noise_ceiling(outputs)
    assert np.isnan(found.reliability).tolist() == [False] * 3 + [True] + [False] * 4
    others = noise_ceiling(np.delete(outputs, 3, axis=2))
    assert found.mean == pytest.approx(others.mean)
    with pytest.raises(ScoringError, match="at least two runs"):
        noise_ceiling(outputs[:, :1])
    outputs[1:, 2] = np.nan
    with pytest.raises(ScoringError, match="of 50, 49 have a run of nothing but NaN"):
        noise_ceiling(outputs)

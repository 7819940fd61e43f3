"""The jackknife against leaving out by hand."""

import numpy as np
import pytest

from coarlib.statistics.influence import jackknife_bias


def test_the_bias_is_that_of_leaving_each_row_out():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 12))
    for a_of, b_of, bias in zip(a, b, jackknife_bias(a, b), strict=True):
        left = [np.corrcoef(np.delete(a_of, i), np.delete(b_of, i))[0, 1] for i in range(12)]
        assert bias == pytest.approx(11 * (np.mean(left) - np.corrcoef(a_of, b_of)[0, 1]))


def test_correlations_over_few_normal_rows_are_too_small_by_the_known_part():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4000, 20))
    b = 0.6 * a + 0.8 * rng.normal(size=a.shape)
    assert jackknife_bias(a, b).mean() == pytest.approx(-0.6 * (1 - 0.36) / 40, rel=0.2)

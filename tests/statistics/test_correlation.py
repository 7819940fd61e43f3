"""Correlations and p-values against scipy, and the undefined ones."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coarlib import scoring
from coarlib.errors import ScoringError
from coarlib.scoring import UndefinedCorrelationWarning, correlate

TOLERANCE = 1e-12
ORACLES = {
    "spearman": stats.spearmanr,
    "pearson": stats.pearsonr,
    "kendall": stats.kendalltau,
}
KINDS = list(ORACLES)


def pair(count, targets, ties, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((count, targets))
    b = 0.7 * a + rng.standard_normal((count, targets))
    return (np.round(2 * a), np.round(2 * b)) if ties else (a, b)


def oracle(kind, a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = [ORACLES[kind](x, y) for x, y in zip(a.T, b.T, strict=True)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [4, 33, 34, 500])
def test_agrees_with_scipy_in_r_and_p(kind, ties, count):
    a, b = pair(count, 12, ties)
    result = correlate(a, b, kind)
    r, p = oracle(kind, a, b)
    np.testing.assert_allclose(result.r, r, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(result.p, p, atol=TOLERANCE, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_agreement_and_its_opposite(kind):
    a, _ = pair(50, 4, ties=True)
    if kind == "spearman":
        assert np.array_equal(correlate(a, a).r, np.ones(4))
    np.testing.assert_allclose(correlate(a, a, kind).r, 1, atol=TOLERANCE)
    np.testing.assert_allclose(correlate(a, -a, kind).r, -1, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 6))
def test_spearman_depends_on_order_only(seed, count, levels):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, (count, 3)), rng.integers(0, levels, (count, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        r = scoring.spearman(a, b)
        np.testing.assert_array_equal(r, scoring.spearman(np.exp(a), -np.exp(-b.astype(float))))
        np.testing.assert_array_equal(r, scoring.spearman(b, a))  # not even rounding differs
        np.testing.assert_array_equal(r, -scoring.spearman(a, -b))
    order = rng.permutation(count)
    np.testing.assert_array_equal(correlate(a, b).r, correlate(a[order], b[order]).r)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_margins_and_blocks_of_targets_change_nothing(kind, monkeypatch):
    a, b = pair(200, 40, ties=False)
    b = b.astype(np.float16)
    whole = correlate(a, b, kind)
    monkeypatch.setattr("coarlib.statistics.correlation.BLOCK_BYTES", 16 * 200 * 3)
    np.testing.assert_allclose(correlate(a, b, kind).r, whole.r, atol=TOLERANCE)
    np.testing.assert_allclose(whole.r, oracle(kind, a, b.astype(float))[0], atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_nan_targets_are_nan_and_named(kind):
    a, b = pair(20, 6, ties=False)
    a[:, 1] = 3
    b[:, 4] = -1
    a[7, 2] = np.nan
    with pytest.warns(UndefinedCorrelationWarning) as caught:
        r = getattr(scoring, kind)(a, b)
    assert np.isnan(r).tolist() == [False, True, True, False, True, False]
    message = str(caught[0].message)
    assert "1 of 6 targets hold a NaN (target 2)" in message
    assert "2 of 6 targets are constant (target 1, 4)" in message
    assert caught[0].filename == __file__


def test_nothing_is_warned_about_defined_correlations():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS:
            getattr(scoring, kind)(*pair(20, 3, ties=True))


def test_two_rows_have_a_correlation_but_no_p_value():
    result = correlate([[0.0, 1.0], [1.0, 0.0]], [[5.0, 5.0], [6.0, 9.0]])
    assert result.r.tolist() == [1, -1]
    assert np.isnan(result.p).all()


def test_pearson_keeps_its_digits_far_from_zero_and_at_extreme_scales():
    a, b = pair(100, 3, ties=False)
    r = scoring.pearson(a, b)
    np.testing.assert_allclose(scoring.pearson(a + 1e6, b), r, atol=1e-9)
    np.testing.assert_allclose(scoring.pearson(a * 1e200, b * 1e-200), r, atol=TOLERANCE)


def test_tensors_of_any_dtype_are_accepted():
    a, b = pair(30, 3, ties=True)
    r = scoring.spearman(a, b)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        tensor = torch.tensor(a).to(dtype).requires_grad_(dtype.is_floating_point)
        np.testing.assert_array_equal(scoring.spearman(tensor, torch.tensor(b)), r)


def test_bad_input_is_named():
    with pytest.raises(ScoringError, match=r"not \[3, 2\] and \[3, 4\]"):
        scoring.spearman(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ScoringError, match="unknown correlation 'r2'"):
        correlate(np.ones((3, 2)), np.ones((3, 2)), "r2")
    with pytest.raises(ScoringError, match="real numbers"):
        scoring.pearson([["a"]], [["b"]])

"""Learning curves: nested sums, honest extrapolation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.regression import Moments, fit, score_arrays, score_rows
from coarlib.regression.extrapolation import expected_correlation, extrapolate
from coarlib.regression.learning_curve import learning_curve
from coarlib.regression.rows import ArrayRows


@pytest.fixture(scope="module")
def source():
    data = linear_rows(2000, 60, 20, keep=0.8, noise=6.0)
    return ArrayRows(data.masks, data.outputs)


def test_points_are_the_fits_of_nested_prefixes(source):
    train, held = np.arange(800), np.arange(1500, 2000)
    curve = learning_curve(source, train, held, points=4)
    assert curve.rows.tolist() == [100, 200, 400, 800]
    for n, r in zip(curve.rows, curve.correlation, strict=True):
        fitted = fit(Moments.from_rows(source, train[:n]))
        assert r == pytest.approx(score_rows(fitted.predict, source, held).mean, abs=1e-4)
    assert (np.diff(curve.correlation) > 0).all()
    assert "doubling the rows to 1,600" in str(curve)


def test_the_prediction_holds_when_the_rows_come(source):
    held = np.arange(1500, 2000)
    early = learning_curve(source, np.arange(700), held)
    late = learning_curve(source, np.arange(1400), held, points=1)
    assert early.low_ahead[0] <= late.correlation[-1] <= early.high_ahead[0]
    assert early.sd[0] < 0.1 and early.sd[1] > early.sd[0]
    assert len(early.table().splitlines()) == 1 + len(early.rows) + 2


@pytest.mark.parametrize("solver", ["least_squares", "ridge"])
def test_the_dip_where_rows_equal_features_is_no_ceiling(solver):
    rng = np.random.default_rng(0)
    masks = rng.random((1200, 200)) < 0.9
    outputs = masks @ rng.normal(size=(200, 30)) + 2 * rng.normal(size=(1200, 30))
    rows, held = ArrayRows(masks, outputs), np.arange(1000, 1200)
    curve = learning_curve(rows, np.arange(240), held, solver=solver)
    for index, count in enumerate((480, 960)):
        came = learning_curve(rows, np.arange(count), held, solver=solver, points=1)
        assert abs(curve.predicted[index] - came.correlation[-1]) < 0.05
    assert "predicted to raise" in str(curve)


def test_what_cannot_be_told_is_unclear(source):
    held = np.arange(1500, 2000)
    below = learning_curve(source, np.arange(64), held, solver="least_squares")
    assert np.isnan(below.predicted).all() and "would bring is unclear" in str(below)
    assert "unclear" in below.table()
    rng = np.random.default_rng(0)
    noise = ArrayRows(source.masks, rng.normal(size=(2000, 20)))
    nothing = learning_curve(noise, np.arange(400), held)
    assert "is unclear: probably no more than" in str(nothing)


@settings(max_examples=50, deadline=None)
@given(
    top=st.floats(0.05, 0.99),
    size=st.floats(1, 500),
    shrinks=st.booleans(),
    seed=st.integers(0, 999),
)
def test_predictions_never_fall(top, size, shrinks, seed):
    rows = 16 * 2 ** np.arange(6)
    curve = expected_correlation(rows, np.array([top]), size, shrinks)[0]
    measured = curve + 0.05 * np.random.default_rng(seed).normal(size=6)
    replicas = measured[:, None] + 0.02 * np.random.default_rng(seed).normal(size=(6, 50))
    wanted = np.array([1024, 2048])
    predicted, _, sd = extrapolate(
        rows, measured, replicas, wanted, features=int(size) + 1, shrinks=shrinks
    )
    known = ~np.isnan(predicted)
    assert (predicted[known] >= min(measured[-1], 1) - 1e-12).all()
    assert (np.diff(predicted[known]) >= 0).all() and (sd[known] >= 0).all()
    assert (np.diff(curve[rows > size + 1]) >= -1e-12).all()


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_known_curve_is_continued(shrinks):
    rows, wanted = 100 * 2 ** np.arange(5), np.array([3200, 6400])
    truth = expected_correlation(np.r_[rows, wanted], np.array([0.8]), 60.0, shrinks)[0]
    noise = 0.002 * np.random.default_rng(0).normal(size=(1, 100))
    replicas = truth[:5, None] + noise
    predicted, _, sd = extrapolate(rows, truth[:5], replicas, wanted, features=60, shrinks=shrinks)
    assert np.allclose(predicted, truth[5:], atol=2e-3)
    assert sd[0] < 0.01


def test_the_formulas_are_what_simulations_give():
    rng = np.random.default_rng(0)
    for rows, features, solver in ((150, 100, "least_squares"), (80, 100, "ridge")):
        weight = rng.normal(size=(features, 60)) / np.sqrt(features * 0.25)
        masks = rng.random((rows + 3000, features)) < 0.5
        outputs = masks @ weight + rng.normal(size=(rows + 3000, 60))
        found = fit(Moments.from_arrays(masks[:rows], outputs[:rows]), solver)
        came = score_arrays(found.predict(masks[rows:]), outputs[rows:]).mean
        top, shrinks = np.array([np.sqrt(0.5)]), solver == "ridge"
        expected = expected_correlation(np.array([rows]), top, float(features), shrinks)[0, 0]
        assert came == pytest.approx(expected, abs=0.03)


def test_too_few_rows(source):
    with pytest.raises(RegressionError, match="at least 32 rows"):
        learning_curve(source, np.arange(20), np.arange(30, 60))
    curve = learning_curve(source, np.arange(40), np.arange(100, 200))
    assert len(curve.wanted) == 0 and "too few" in str(curve)

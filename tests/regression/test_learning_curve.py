"""Learning curves: nested sums, honest extrapolation."""

import numpy as np
import pytest
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.regression import Moments, fit, score_rows
from coarlib.regression.learning_curve import extrapolate, learning_curve
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
    assert "doubling the rows to 1600" in str(curve)


def test_the_prediction_holds_when_the_rows_come(source):
    held = np.arange(1500, 2000)
    early = learning_curve(source, np.arange(700), held)
    late = learning_curve(source, np.arange(1400), held)
    assert abs(early.predicted[0] - late.correlation[-1]) < 3 * early.sd[0] + 0.01
    assert early.sd[0] < 0.1 and early.sd[1] > early.sd[0]
    assert len(early.table().splitlines()) == 1 + len(early.rows) + 2


def test_a_known_curve_is_continued():
    rows = 100 * 2 ** np.arange(6)
    truth = 0.8 - 3 * (rows * 1.0) ** -0.5
    replicas = truth[:, None] + 0.002 * np.random.default_rng(0).normal(size=(1, 100))
    predicted, sd = extrapolate(rows, truth, replicas, np.array([2 * rows[-1]]))
    assert predicted[0] == pytest.approx(0.8 - 3 * (2 * rows[-1]) ** -0.5, abs=1e-4)
    assert sd[0] < 0.01


def test_too_few_rows(source):
    with pytest.raises(RegressionError, match="at least 32 rows"):
        learning_curve(source, np.arange(20), np.arange(30, 60))
    curve = learning_curve(source, np.arange(40), np.arange(100, 200))
    assert len(curve.wanted) == 0 and "too few" in str(curve)

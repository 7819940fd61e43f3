"""Metrics by name: against plain loops, and refused by name."""

import numpy as np
import pytest

from coarlib.errors import ScoringError
from coarlib.scoring.metrics import METRICS, evaluate


@pytest.fixture
def case():
    rng = np.random.default_rng(2)
    masks, scores = rng.random((40, 6)) < 0.5, rng.normal(size=(6, 3))
    return scores, masks, masks @ (2 * scores) + rng.normal(size=(40, 3)) + 5


def test_slope_and_explained_variance_are_those_of_numpy(case):
    scores, masks, outputs = case
    for target in range(3):
        predicted = masks @ scores[:, target]
        line = np.polyfit(predicted, outputs[:, target], 1)
        assert evaluate("slope", *case)[target] == pytest.approx(line[0])
        left = np.var(outputs[:, target] - predicted) / np.var(outputs[:, target])
        assert evaluate("r_squared", *case)[target] == pytest.approx(1 - left)


def test_what_never_varies_has_no_metric(case):
    scores, masks, outputs = case
    outputs[:, 1], scores[:, 2] = 3, 0
    assert np.isnan(evaluate("slope", scores, masks, outputs)[2])
    assert not np.isfinite(evaluate("r_squared", scores, masks, outputs)[1])


def test_an_unknown_metric_and_wrong_shapes_are_refused(case):
    scores, masks, outputs = case
    with pytest.raises(ScoringError, match="did you mean 'slope'"):
        evaluate("slopes", *case)
    with pytest.raises(ScoringError, match="differ"):
        evaluate("slope", scores, masks, outputs[:, :2])
    assert set(METRICS) >= {"slope", "r_squared"}

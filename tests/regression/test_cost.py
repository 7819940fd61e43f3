"""What attributions cost."""

import json

import pytest
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.regression import InformedPrior, Moments, SharedPrior, fit
from coarlib.regression.cost import Cost


@pytest.mark.parametrize(
    ("summary", "passes", "complete"),
    [
        ({"num_rows": 90, "num_excluded": 10}, 100, True),
        ({"num_rows": 90, "slopes": [0.5]}, 90, False),
        ({}, 0, False),
        ({"cost": {"rows": 692, "prior_passes": 337, "forward_passes": 1029}}, 1029, True),
        ({"cost": {"rows": 692, "prior_passes": None, "forward_passes": None}}, 692, False),
    ],
)
def test_a_summary_says_what_is_known(summary, passes, complete):
    cost = Cost.of(summary)
    assert (cost.passes, cost.complete) == (passes, complete)
    assert Cost.of({"cost": json.loads(json.dumps(cost.as_json()))}) == cost


def test_words():
    assert str(Cost(1692)) == "1,692 rows"
    assert "337 forward passes for a prior, together 1,029" in str(Cost(692, 337))
    assert "unknown" in str(Cost(692, None))


def test_rows_left_out_and_guesses_count():
    data = linear_rows(200, 12, 5, keep=0.8, noise=0.5, seed=1)
    guess = data.weight.copy()
    data.outputs[3] = float("nan")
    moments = Moments.from_arrays(data.masks, data.outputs)
    assert fit(moments, "ridge").cost == Cost(200, 0)
    assert fit(moments, InformedPrior(scores=guess, scores_cost=48)).cost == Cost(200, 48)
    assert fit(moments, InformedPrior(scores=guess)).cost == Cost(200, None)
    assert fit(moments, SharedPrior()).cost == Cost(200, 0)
    assert fit(moments, SharedPrior(prior=guess[:, 0] ** 2)).cost == Cost(200, None)
    with pytest.raises(RegressionError, match="finite number"):
        SharedPrior(scores=guess, scores_cost=-1)

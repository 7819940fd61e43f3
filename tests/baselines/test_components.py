import numpy as np
import pytest

from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.errors import ComponentError


def test_leave_one_out_is_exact_on_a_linear_model_in_any_row_order():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(7, 3))
    masks = np.concatenate([~np.eye(7, dtype=bool), np.ones((1, 7), bool)])[rng.permutation(8)]
    np.testing.assert_allclose(leave_one_out(masks, masks @ weight + 5), weight, atol=1e-12)


def test_leave_one_out_needs_every_component_and_the_intact_model():
    masks = ~np.eye(4, dtype=bool)
    with pytest.raises(ComponentError, match="every component is kept"):
        leave_one_out(masks, np.zeros((4, 1)))
    masks[2] = True
    with pytest.raises(ComponentError, match="1 are missing, the first is 2"):
        leave_one_out(masks, np.zeros((4, 1)))


def test_random_scores_are_seeded():
    assert (random_scores(5, 4, seed=1) == random_scores(5, 4, seed=1)).all()
    assert (random_scores(5, 4, seed=1) != random_scores(5, 4, seed=2)).all()

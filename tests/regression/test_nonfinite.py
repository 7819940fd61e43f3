"""Outputs that are NaN or infinite: rows, targets, or rows of one target are left out."""

import numpy as np
import pytest

from coarlib.errors import RegressionError
from coarlib.gradient_passes import PassPlan, PassSums
from coarlib.regression import Attributions, Auto, InformedPrior, Lasso, Ridge, fit
from coarlib.regression.solvers import Bayes
from coarlib.scoring import lds

BAD = {1: [3, 50], 2: [7], 4: [3, 50], 5: slice(None)}


def rows(seed=0, count=300):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 12)) < 0.6
    outputs = masks @ rng.normal(size=(12, 6)) + 0.1 * rng.normal(size=(count, 6))
    holed = outputs.copy()
    for target, where in BAD.items():
        holed[where, target] = -np.inf if target == 4 else np.nan if target == 2 else np.inf
    return masks, outputs, holed


@pytest.mark.parametrize("solver", ["least_squares", "ridge", "lasso", "auto"])
def test_rows_are_left_out_for_their_target_alone(solver, tmp_path):
    masks, outputs, holed = rows()
    found = fit((masks, holed), solver, held_out=60, nonfinite="alone")
    assert found.weight.shape == (12, 6) and np.isnan(found.weight[:, 5]).all()
    assert found.summary["targets_left_out"] == [5]
    for targets, where in (([0, 3], []), ([1, 4], [3, 50]), ([2], [7])):
        left = np.setdiff1d(np.arange(300), where)
        alone = fit((masks[left], outputs[left][:, targets]), solver, held_out=60)
        np.testing.assert_allclose(found.weight[:, targets], alone.weight, atol=1e-6)
        np.testing.assert_allclose(
            found.held_out.pearson[targets], alone.held_out.pearson, atol=1e-6
        )
    found.save(tmp_path / "out")
    again = Attributions.load(tmp_path / "out")
    np.testing.assert_array_equal(again.weight, found.weight)
    scored = lds(found.weight, masks, outputs, allow_fitted_rows=True, interval=False)
    assert scored.num_nan_scores == 1 and scored.mean > 0.9


def passes_of(weight, count=60):
    """Gradient passes of a linear truth [N, T]: what a component on a path says is its weight."""
    plan = PassPlan.for_fraction(0.3, passes=count)
    features, targets = weight.shape
    masks = np.stack([plan.draw(k, slice(0, targets), features) for k in range(count)])
    along = ((masks > 0) & (masks < 1)).transpose(0, 2, 1)
    sums = [x.sum(0).astype("f4") for x in (weight * along, weight**2 * along, along)]
    outputs = np.einsum("ktn,nt->kt", masks, weight)
    return PassSums(plan, np.arange(count), outputs, np.arange(targets), *sums, weight.astype("f4"))


LAM = np.geomspace(0.01, 1, 6)


@pytest.mark.parametrize(
    "solver",
    [
        lambda guess: Ridge(lam=LAM),
        lambda guess: Lasso(lam=0.01 * LAM, start=guess),
        lambda guess: InformedPrior(scores=guess),
        lambda guess: Bayes(scores=guess),
        lambda guess: Bayes(passes=passes_of(guess), scores=np.stack([guess, guess**2])),
        lambda guess: Auto(candidates=(Ridge(lam=LAM),), passes=passes_of(guess), scores=guess),
    ],
    ids=["ridge", "lasso", "informed_prior", "bayes", "bayes with passes", "auto"],
)
@pytest.mark.parametrize("nonfinite", ["alone", "targets"])
def test_what_a_solver_knows_of_each_target_goes_with_the_target(solver, nonfinite):
    masks, outputs, holed = rows()
    guess = np.random.default_rng(1).normal(size=(12, 6))
    found = fit((masks, holed), solver(guess), held_out=60, nonfinite=nonfinite)
    whole = [0, 3]
    alone = fit((masks, outputs[:, whole]), solver(guess).of_targets(np.array(whole)), held_out=60)
    np.testing.assert_allclose(found.weight[:, whole], alone.weight, atol=1e-6)
    assert np.isfinite(found.weight[:, [1, 2, 4]]).all() == (nonfinite == "alone")


def test_targets_are_left_out_on_request_and_rows_by_default():
    masks, outputs, holed = rows()
    found = fit((masks, holed), "ridge", held_out=60, nonfinite="targets")
    assert np.flatnonzero(np.isnan(found.weight).any(0)).tolist() == [1, 2, 4, 5]
    assert found.summary["targets_left_out"] == [1, 2, 4, 5]
    whole = fit((masks, outputs[:, [0, 3]]), "ridge", held_out=60)
    np.testing.assert_allclose(found.weight[:, [0, 3]], whole.weight, atol=1e-6)
    found = fit((masks, holed[:, :5]), "least_squares", held_out=60)
    assert found.summary["num_excluded"] == 3 and np.isfinite(found.weight).all()


def test_nothing_left_is_said_with_the_targets_that_are_the_reason():
    masks, _, holed = rows()
    with pytest.raises(RegressionError, match=r"nothing to fit.*4 of 6 targets \(target 1, 2, 4"):
        fit((masks, holed), "ridge", held_out=60)
    with pytest.raises(RegressionError, match="every target has NaN or infinite"):
        fit((masks, holed[:, 5:]), "ridge", held_out=60, nonfinite="alone")
    with pytest.raises(RegressionError, match="nonfinite must be rows, targets, alone"):
        fit((masks, holed), "ridge", nonfinite="drop")

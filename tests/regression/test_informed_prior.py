"""Ridge towards cheap guesses of the weights: exact bookkeeping, and what the guesses bring."""

import numpy as np
import pytest
import torch
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.regression import (
    ArrayRows,
    Attributions,
    Auto,
    Moments,
    Problem,
    SharedPrior,
    fit,
    score_arrays,
)
from coarlib.regression.dual import DualProblem
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.solvers.prior import learn_prior, load_prior_scores, save_prior_scores
from coarlib.regression.split import split_rows

EXACT = 1e-9
SAME = 1e-3  # float32 products in the kernel
ROWS, FEATURES, TARGETS = 60, 80, 30
GROUPS = np.repeat([0, 1], [40, 40])


@pytest.fixture
def data():
    """Noisy rows of a dense truth, too few for it, and guesses: half good, half nothing."""
    found = linear_rows(ROWS + 300, FEATURES, TARGETS, keep=0.8, seed=1)
    rng = np.random.default_rng(2)
    found.outputs = found.outputs + 0.5 * found.outputs.std(0) * rng.normal(
        size=found.outputs.shape
    )
    found.masks[:, 5] = True
    guess = 4 * (found.weight + 0.7 * rng.normal(size=found.weight.shape))
    guess[40:] = guess[:40].std() * rng.normal(size=(40, TARGETS))
    return found, guess


def problem_of(data, dual=False):
    masks, outputs = data.masks[:ROWS], data.outputs[:ROWS]
    moments = Moments.from_arrays(masks, outputs)
    if dual:
        return DualProblem.from_masks(moments, masks)
    return Problem.from_moments(moments)


def held_out(data, problem, solution):
    fitted = Attributions.from_solution(problem, solution)
    return score_arrays(fitted.predict(data.masks[ROWS:]), data.outputs[ROWS:]).mean


def test_what_weights_leave_unexplained_has_the_moments_of_the_residuals(data):
    rows, _ = data
    problem = problem_of(rows)
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(79, TARGETS)))
    left = problem.less(weight)
    raw = problem.raw_weight(weight)
    residual = rows.outputs[:ROWS] - (rows.masks[:ROWS] - problem.moments.mean_mask) @ raw
    expected = Problem.from_moments(Moments.from_arrays(rows.masks[:ROWS], residual))
    scale = float(expected.covariance().abs().max())
    assert torch.allclose(left.covariance(), expected.covariance(), atol=1e-6 * scale)
    assert np.allclose(left.variance, expected.variance, rtol=1e-6)
    assert np.allclose(left.moments.mean_output, problem.moments.mean_output, atol=EXACT)


def test_slopes_say_which_groups_of_guesses_are_worth_something(data):
    rows, guess = data
    problem = problem_of(rows)
    solution = SharedPrior(scores=guess, groups=GROUPS).solve(problem)
    good, useless = solution.details["slopes"]
    # Regression dilution: cov(w, guess) / var(guess) = 1 / (4 (1 + .7²)) = .17.
    assert 0.1 < good < 0.25
    assert abs(useless) < 0.05


@pytest.mark.parametrize("dual", [False, True])
def test_good_guesses_predict_better_and_useless_ones_do_no_harm(data, dual):
    rows, guess = data
    problem = problem_of(rows, dual)
    plain = held_out(rows, problem, SharedPrior().solve(problem))
    informed = held_out(rows, problem, SharedPrior(scores=guess, groups=GROUPS).solve(problem))
    noise = np.random.default_rng(4).normal(size=guess.shape)
    useless = held_out(rows, problem, SharedPrior(scores=noise).solve(problem))
    assert informed > plain + 0.05
    assert useless > plain - 0.02


def test_the_scale_of_the_guesses_does_not_matter(data):
    rows, guess = data
    problem = problem_of(rows)
    one, other = (SharedPrior(scores=s * guess, steps=10).solve(problem) for s in (1, -1e3))
    assert np.allclose(one.weight, other.weight, atol=1e-4)
    assert one.gap.max() < 1e-8


def test_dual_and_primal_agree(data):
    rows, guess = data
    options = {"scores": guess, "groups": GROUPS, "steps": 10}
    a, b = (SharedPrior(**options).solve(problem_of(rows, dual)) for dual in (False, True))
    assert np.allclose(a.weight, b.weight, atol=SAME * np.abs(a.weight).max())
    assert np.allclose(a.bias, b.bias, atol=10 * SAME)


def test_the_evidence_never_falls(data):
    rows, guess = data
    problem = problem_of(rows)
    scaled = guess[problem.active] * problem.scale[:, None]
    evidence = learn_prior(problem, steps=15, scores=scaled).evidence
    assert (np.diff(evidence) > -1e-6 * np.abs(evidence[0])).all()


def test_constant_targets_and_features_stay_zero(data):
    rows, guess = data
    rows.outputs[:, 2] = 4.0
    solution = SharedPrior(scores=guess).solve(problem_of(rows))
    assert not solution.weight[:, 2].any() and solution.bias[2] == pytest.approx(4)
    assert not solution.weight[5].any()


def test_auto_takes_the_guesses_into_account(data, tmp_path):
    rows, guess = data
    save_prior_scores(tmp_path / "scores.npz", guess, GROUPS, 9)
    source = ArrayRows(rows.masks, rows.outputs)
    lines = []
    solver = Auto(**load_prior_scores(tmp_path / "scores.npz"))
    how = FitOptions(with_curve=True, say=lines.append)
    found = fit_and_score(source, split_rows(source, ROWS, 60), solver, how)
    assert found.summary["solver"] == "informed_prior"
    assert found.cost.passes == ROWS + 60 + 9
    assert set(found.summary["candidates"]) >= {"ridge", "lasso", "informed_prior"}
    assert found.summary["learning_curve"]["solver"] == "informed_prior"


def test_files_of_scores(tmp_path, data):
    _, guess = data
    np.save(tmp_path / "s.npy", guess)
    found = load_prior_scores(tmp_path / "s.npy", slice(3, 5))
    assert set(found) == {"scores"} and np.array_equal(found["scores"], guess[:, 3:5])
    np.save(tmp_path / "one.npy", guess[0])
    (tmp_path / "text").write_text("scores")
    for name in ("one.npy", "text", "absent.npz"):
        with pytest.raises(RegressionError, match=name):
            load_prior_scores(tmp_path / name)


def test_bad_scores_are_one_sentence(data):
    rows, guess = data
    moments = Moments.from_arrays(rows.masks[:ROWS], rows.outputs[:ROWS])
    with pytest.raises(RegressionError, match="needs scores"):
        fit(moments, "informed_prior")
    with pytest.raises(RegressionError, match=r"80 features × 30 targets, not .*\[80, 29\]"):
        fit(moments, "informed_prior", scores=guess[:, 1:])
    guess[3, 4] = np.nan
    with pytest.raises(RegressionError, match="NaN"):
        fit(moments, "informed_prior", scores=guess)
    with pytest.raises(RegressionError, match="not both"):
        fit(moments, "shared_prior", scores=guess, prior=np.ones(80))

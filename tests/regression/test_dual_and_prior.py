"""The dual form equals the primal one; the shared prior equals its definition and pays off."""

import numpy as np
import pytest
import torch
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.regression import Attributions, Moments, Problem, Ridge, SharedPrior, score_arrays
from coarlib.regression.dual import DualProblem, finite_masks
from coarlib.regression.rows import ArrayRows
from coarlib.regression.solvers.prior import Prior, learn_prior

SAME = 1e-4  # float32 products in the kernel


def both(data):
    moments = Moments.from_arrays(data.masks, data.outputs)
    bare = Moments.from_arrays(data.masks, data.outputs, with_pairs=False)
    assert bare.pairs is None
    return Problem.from_moments(moments), DualProblem.from_masks(bare, data.masks)


def shared_structure(rows, features=80, targets=40, strong=8, noise=1.0, seed=0):
    """Few features matter, the same for all targets."""
    rng = np.random.default_rng(seed)
    data = linear_rows(rows + 400, features, targets, keep=0.8, seed=seed)
    data.weight[strong:] *= 0.02
    signal = data.masks @ data.weight
    data.outputs = signal + noise * signal.std(0) * rng.normal(size=signal.shape)
    return data


@pytest.fixture
def wide():
    data = linear_rows(40, 90, 6, noise=0.5)
    data.masks[:, 3] = True
    return data


def test_dual_products_and_spectrum_equal_the_primal_ones(wide):
    primal, dual = both(wide)
    values, vectors = primal.eigen()
    values_d, vectors_d = dual.eigen()
    assert len(values) == len(values_d) == 39
    assert torch.allclose(values, values_d, rtol=SAME, atol=SAME)
    assert torch.allclose(vectors @ vectors.T, vectors_d @ vectors_d.T, atol=SAME)
    weight = torch.randn(primal.num_active, 3, dtype=torch.float64)
    assert torch.allclose(primal.times_gram(weight), dual.times_gram(weight), atol=SAME)


def test_dual_ridge_equals_primal_ridge(wide):
    a, b = (Ridge(lams=np.array([0.05])).solve(problem) for problem in both(wide))
    assert np.allclose(a.weight, b.weight, atol=SAME)
    assert np.allclose(a.bias, b.bias, atol=20 * SAME)
    assert a.error_feature is None and b.error_feature is None
    assert b.gap.max() < 1e-8


def test_posteriors_equal_their_definition(wide):
    size = both(wide)[0].num_active
    tau = np.random.default_rng(0).random(size) + 0.01
    for problem in both(wide):
        c = problem.covariance()
        mean, marginal, logdet = problem.posterior(torch.from_numpy(tau), c)
        gram = both(wide)[0].gram.numpy()
        n = problem.num_rows
        covariance = np.linalg.inv(n * gram + np.diag(1 / tau))
        assert np.allclose(mean, covariance @ (n * c.numpy()), atol=SAME)
        assert np.allclose(marginal, np.diag(covariance), rtol=1e-3)
        assert logdet == pytest.approx(
            np.linalg.slogdet(np.eye(size) + n * gram @ np.diag(tau))[1], rel=SAME
        )


def test_evidence_never_falls():
    data = shared_structure(60)
    problem = Problem.from_moments(Moments.from_arrays(data.masks[:60], data.outputs[:60]))
    evidence = learn_prior(problem, steps=15).evidence
    assert (np.diff(evidence) > -1e-6 * np.abs(evidence[0])).all()


@pytest.mark.parametrize("dual", [False, True])
def test_the_shared_prior_finds_what_targets_share(dual):
    data = shared_structure(60)
    train, test = slice(0, 60), slice(60, None)
    moments = Moments.from_arrays(data.masks[train], data.outputs[train])
    problem = Problem.from_moments(moments)
    if dual:
        problem = DualProblem.from_masks(moments, data.masks[train])
    scores = {}
    for solver in (Ridge(), SharedPrior()):
        fitted = Attributions.from_solution(problem, solver.solve(problem))
        scores[solver] = score_arrays(fitted.predict(data.masks[test]), data.outputs[test]).mean
    assert scores[SharedPrior()] > scores[Ridge()] + 0.1
    tau = learn_prior(problem).variance
    assert set(np.argsort(-tau)[:8]) == set(range(8))


def test_the_posterior_sd_is_calibrated():
    data = shared_structure(100, targets=80)
    problem = Problem.from_moments(Moments.from_arrays(data.masks[:100], data.outputs[:100]))
    fitted = Attributions.from_solution(problem, SharedPrior().solve(problem))
    z = (fitted.weight - data.weight)[:8] / fitted.standard_error[:8]
    assert 0.7 < z.std() < 1.5


def test_no_temper_is_plain_ridge(wide):
    problem = both(wide)[0]
    plain = Ridge().solve(problem)
    flat = SharedPrior(temper=0, pooled=True, steps=2).solve(problem)
    assert np.allclose(plain.weight, flat.weight, atol=1e-6)


def test_groups_pull_variances_together():
    data = shared_structure(60)
    problem = Problem.from_moments(Moments.from_arrays(data.masks[:60], data.outputs[:60]))
    groups = np.repeat([0, 1], [8, 72])
    tau = learn_prior(problem, groups=groups, group_weight=1e9).variance
    assert np.ptp(tau[:8]) < 1e-6 * tau[0] and np.ptp(tau[8:]) < 1e-6 * tau[8]
    assert tau[0] > 5 * tau[-1]
    solution = SharedPrior(groups=groups, group_weight=10.0).solve(problem)
    assert np.isfinite(solution.weight).all()


def test_a_prior_from_elsewhere_and_bad_options():
    data = shared_structure(60)
    problem = Problem.from_moments(Moments.from_arrays(data.masks[:60], data.outputs[:60]))
    prior = np.where(np.arange(80) < 8, 1.0, 0.0)
    solution = SharedPrior(prior=prior).solve(problem)
    assert np.abs(solution.weight[8:]).max() < 1e-3
    for options in ({"temper": 2}, {"prior": prior[:5]}, {"groups": prior}):
        with pytest.raises(RegressionError):
            SharedPrior(**options).solve(problem)


@pytest.mark.parametrize("temper", [1.0, 0.5])
def test_a_learnt_prior_gives_what_learning_it_gives(wide, temper):
    for problem in both(wide):
        own = SharedPrior(temper=temper).solve(problem)
        given = SharedPrior(temper=temper, prior=learn_prior(problem)).solve(problem)
        assert np.array_equal(own.weight, given.weight)
        assert own.status == given.status and own.details == given.details
    with pytest.raises(RegressionError, match=r"3 features that vary; here \d+ do"):
        SharedPrior(prior=Prior(np.ones(3), np.zeros(3), [])).solve(problem)


def test_constant_targets_stay_zero(wide):
    wide.outputs[:, 2] = 4.0
    for problem in both(wide):
        solution = SharedPrior(steps=3).solve(problem)
        assert not solution.weight[:, 2].any() and solution.bias[2] == pytest.approx(4)


def test_masks_of_rows_with_bad_outputs_are_left_out(wide):
    wide.outputs[5, 1] = np.nan
    kept = finite_masks(ArrayRows(wide.masks, wide.outputs), None)
    assert np.array_equal(kept, np.delete(wide.masks, 5, axis=0))

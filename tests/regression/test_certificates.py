"""A certificate bounds: nothing that is solved is further from its optimum than it says."""

import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning

from coarlib.errors import RegressionError
from coarlib.regression import Lasso, Moments, Problem
from coarlib.regression.problem import certificate
from coarlib.regression.solvers.lasso_kernel import _gap
from coarlib.regression.stream import lasso_gap

sys.path.append(str(ROOT / "benchmarks"))
import certificates

ROUNDING = 1e-10


@pytest.mark.parametrize("solver", certificates.SOLVERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(10_000, 2**31))
def test_no_answer_is_further_off_than_its_certificate(solver, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution, excess = certificates.SOLVERS[solver](seed)
    assert (solution.gap >= -1e-12).all() and np.isfinite(solution.gap).all()
    assert (excess <= solution.gap + ROUNDING).all()


@pytest.mark.parametrize("solver", ["least squares, n > N", "ridge at λ"])
def test_weights_from_a_float32_inverse_are_certified_too(monkeypatch, solver):
    """As problems of many features are solved: LAPACK's factor, and refinement."""
    monkeypatch.setattr("coarlib.regression.solvers.least_squares.NARROW_FROM", 2)
    for seed in range(40):
        solution, excess = certificates.SOLVERS[solver](seed)
        assert (excess <= solution.gap + ROUNDING).all()
        assert (solution.gap < 1e-7).all()


@pytest.mark.parametrize("lam", [0.01, 0.1])
def test_a_first_sweep_that_overshoots_is_not_taken_for_the_optimum(lam):
    rng = np.random.default_rng(2)
    masks = rng.random((200, 10)) < 0.5
    outputs = (masks @ rng.normal(size=(10, 3)) + 0.1 * rng.normal(size=(200, 3)))[:, 2:]
    solution = Lasso(lam).solve(Problem.from_moments(Moments.from_arrays(masks, outputs)))
    z = (masks - masks.mean(0)) / masks.std(0)
    theirs = linear_model.Lasso(alpha=lam, tol=1e-14, max_iter=10**6).fit(z, outputs[:, 0]).coef_
    assert np.allclose(solution.weight[:, 0] * masks.std(0), theirs, atol=1e-3)
    assert 0 < solution.gap[0] <= 1e-6


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_the_gap_of_any_weights_is_not_negative_and_the_same_compiled(seed, scale):
    rng = np.random.default_rng(seed)
    masks = rng.random((40, 6)) < 0.7
    problem = Problem.from_moments(Moments.from_arrays(masks, rng.normal(size=(40, 1))))
    w = scale * rng.normal(size=(problem.num_active, 1))
    c = problem.covariance().numpy()
    found = lasso_gap(
        problem, torch.from_numpy(w), torch.tensor([0.05], dtype=torch.float64), slice(None)
    )
    g = (c - problem.gram.numpy() @ w)[:, 0]
    yy = float(problem.variance[0])
    compiled = _gap(w[:, 0], g, c[:, 0], len(w), yy, 0.05, 0.0, False) / (0.5 * yy)
    assert found[0] >= 0
    assert found[0] == pytest.approx(compiled, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("excess", [-0.01, np.nan, np.inf])
def test_what_bounds_nothing_is_an_error(excess):
    variance = np.array([1.0, 0.0, 2.0])
    assert certificate(np.array([0.1, 5.0, -1e-12]), variance).tolist() == [0.2, 0.0, 0.0]
    with pytest.raises(RegressionError, match="certificate of target 2 is"):
        certificate(np.array([0.1, 0.0, excess]), variance)

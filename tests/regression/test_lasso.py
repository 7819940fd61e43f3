"""The lasso against scikit-learn, its optimality conditions, and its certificate."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regression_problems import linear_rows
from sklearn import linear_model
from sklearn.linear_model import ElasticNet
from sklearn.preprocessing import StandardScaler

from coarlib.errors import RegressionError
from coarlib.regression import Lasso, Moments, Problem
from coarlib.regression.solvers.lasso import largest_lambda
from coarlib.regression.solvers.lasso_paths import Paths

TIGHT = 1e-12
CLOSE = 1e-5


def sparse_rows(rows=150, features=40, targets=6, noise=1.0, seed=0, keep=0.8):
    data = linear_rows(rows, features, targets, keep=keep, seed=seed)
    data.weight[np.random.default_rng(seed).random(data.weight.shape) < 0.8] = 0
    signal = data.masks @ data.weight + data.bias
    data.outputs = signal + noise * np.random.default_rng(seed + 1).normal(size=signal.shape)
    return data


def moments_of(data, rows=slice(None)):
    return Moments.from_arrays(data.masks[rows], data.outputs[rows])


def standardised_weight(problem, solution):
    return solution.weight[problem.active] * problem.scale[:, None]


@pytest.fixture
def data():
    return sparse_rows()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("l1_ratio", "lam"), [(1.0, 0.05), (1.0, 0.005), (0.5, 0.05), (0.9, 0.01)])
def test_matches_scikit_learn(data, positive, l1_ratio, lam):
    problem = Problem.from_moments(moments_of(data))
    ours = Lasso(lam, l1_ratio=l1_ratio, positive=positive, tol=TIGHT).solve(problem)
    x = StandardScaler().fit_transform(data.masks.astype(float))
    model = ElasticNet(alpha=lam, l1_ratio=l1_ratio, positive=positive, tol=1e-12, max_iter=100_000)
    theirs = model.fit(x, data.outputs - data.outputs.mean(0)).coef_.T
    assert np.allclose(standardised_weight(problem, ours), theirs, atol=CLOSE)
    assert np.array_equal(np.abs(theirs) > 1e-4, np.abs(standardised_weight(problem, ours)) > 1e-4)
    assert ours.gap.max() <= TIGHT


def test_the_gap_is_scikit_learns(data):
    problem = Problem.from_moments(moments_of(data))
    ours = Lasso(0.03, tol=0.05).solve(problem)
    x = StandardScaler().fit_transform(data.masks.astype(float))
    n = len(x)
    for t in range(6):
        y = data.outputs[:, t] - data.outputs[:, t].mean()
        w = standardised_weight(problem, ours)[:, t].astype(float)
        optimum = linear_model.Lasso(alpha=0.03, tol=1e-14, max_iter=100_000).fit(x, y).coef_

        def objective(v, y=y):
            return ((y - x @ v) ** 2).sum() / (2 * n) + 0.03 * np.abs(v).sum()

        excess = (objective(w) - objective(optimum)) / (0.5 * y.var())
        assert excess <= ours.gap[t] + 1e-9
        assert ours.gap[t] <= 0.05


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(5, 80),
    features=st.integers(1, 60),
    seed=st.integers(0, 999),
    share=st.floats(0.01, 1.0),
    positive=st.booleans(),
)
def test_optimality_conditions_hold(rows, features, seed, share, positive):
    data = sparse_rows(rows, features, 2, seed=seed)
    problem = Problem.from_moments(moments_of(data))
    if problem.num_active == 0:
        return
    lam = share * largest_lambda(problem).max() + 1e-3
    w = standardised_weight(problem, Lasso(lam, tol=TIGHT, positive=positive).solve(problem))
    gradient = (problem.covariance() - problem.gram @ w.astype(float)).numpy()
    slack = 2e-4 * np.sqrt(problem.variance).max()
    assert (gradient <= lam + slack).all()
    assert np.allclose(gradient[w > 1e-3], lam, atol=slack)
    if positive:
        assert (w >= 0).all()
    else:
        assert (gradient >= -lam - slack).all()
        assert np.allclose(gradient[w < -1e-3], -lam, atol=slack)


def test_largest_lambda_is_where_the_first_weight_appears(data):
    problem = Problem.from_moments(moments_of(data))
    top = largest_lambda(problem)
    assert not Lasso(top * 1.000001, tol=TIGHT).solve(problem).weight.any()
    assert (Lasso(top * 0.99, tol=TIGHT).solve(problem).weight != 0).any(0).all()


def test_lambda_is_chosen_by_the_validation_rows(data):
    train, held = slice(0, 100), slice(100, None)
    problem = Problem.from_moments(moments_of(data, train))
    ours = Lasso(num_lambdas=20, patience=50).solve(
        replace(problem, validation=moments_of(data, held))
    )
    x = StandardScaler().fit(data.masks[train].astype(float))
    y = data.outputs
    for t in range(6):
        errors = []
        for lam in ours.path["lam"][t]:
            model = linear_model.Lasso(alpha=lam, tol=1e-10, max_iter=100_000)
            model.fit(x.transform(data.masks[train].astype(float)), y[train, t])
            predicted = model.predict(x.transform(data.masks[held].astype(float)))
            errors.append(((predicted - y[held, t]) ** 2).mean())
        assert np.allclose(ours.path["validation_error"][t], errors, rtol=1e-3)
        assert ours.lam[t] == ours.path["lam"][t][np.argmin(errors)]


def test_a_path_stops_early_and_says_where(data):
    problem = Problem.from_moments(moments_of(data, slice(0, 100)))
    problem = replace(problem, validation=moments_of(data, slice(100, None)))
    options = {"num_lambdas": 60, "eps": 1e-3}
    short, whole = (Lasso(patience=p, **options).solve(problem) for p in (3, 1000))
    assert np.isnan(short.path["gap"]).any() and not np.isnan(whole.path["gap"]).any()
    assert (whole.path["gap"] <= 1e-4).all() and (whole.gap <= 1e-6).all()
    exact = Lasso(path_tol=1e-6, patience=1000, **options).solve(problem)
    assert (exact.path["gap"] <= 1e-6).all() and np.array_equal(exact.lam, whole.lam)
    early = np.isfinite(short.path["validation_error"])
    assert np.allclose(
        short.path["validation_error"][early], whole.path["validation_error"][early], rtol=1e-4
    )


def test_a_warm_start_gives_the_same_answer_sooner(data):
    problem = Problem.from_moments(moments_of(data))
    cold = Lasso(0.02, tol=TIGHT).solve(problem)
    warm = Lasso(0.02, tol=TIGHT, start=cold.weight).solve(problem)
    assert np.allclose(cold.weight, warm.weight, atol=CLOSE)
    assert warm.iterations < cold.iterations


def test_more_features_than_rows_and_constant_columns():
    data = sparse_rows(30, 80, 4)
    data.masks[:, 7] = True
    data.outputs[:, 1] = 3.0
    problem = Problem.from_moments(moments_of(data))
    ours = Lasso(0.05).solve(problem)
    assert not ours.weight[7].any() and not ours.weight[:, 1].any()
    assert ours.gap.max() <= 1e-6
    assert ours.bias[1] == pytest.approx(3.0)


def test_each_target_may_have_its_own_lambda(data):
    problem = Problem.from_moments(moments_of(data))
    lam = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3])
    ours = Lasso(lam, tol=TIGHT).solve(problem)
    for t in range(6):
        alone = Lasso(float(lam[t]), tol=TIGHT).solve(problem)
        assert np.allclose(ours.weight[:, t], alone.weight[:, t], atol=CLOSE)


@pytest.fixture
def by_products(monkeypatch):
    """Let matrix products follow every path."""
    monkeypatch.setattr(Paths, "_must_multiply", lambda *_: True)


@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-10])
@pytest.mark.parametrize("options", [{}, {"positive": True}, {"l1_ratio": 0.5}])
def test_products_follow_the_same_path_as_coordinate_descent(options, tol, request):
    data = sparse_rows(400, 30, 12)
    data.outputs[:, 3] = 2.0
    data.outputs[:, 4] *= 1e12
    problem = Problem.from_moments(moments_of(data, slice(0, 300)))
    problem = replace(problem, validation=moments_of(data, slice(300, None)))
    solver = Lasso(tol=tol, path_tol=tol, num_lambdas=40, **options)
    descended = solver.solve(problem)
    request.getfixturevalue("by_products")
    found = solver.solve(problem)
    assert found.gap.max() <= 1.01 * tol and found.details["targets_above_tolerance"] == 0
    exact = replace(solver, lam=found.lam, tol=TIGHT).solve(problem)
    assert np.allclose(found.weight / data.outputs.std(0).clip(1e-3), exact.weight
                       / data.outputs.std(0).clip(1e-3), atol=3 * np.sqrt(tol))  # fmt: skip
    errors, expected = found.path["validation_error"], descended.path["validation_error"]
    both = np.isfinite(errors) & np.isfinite(expected)
    assert np.array_equal(np.isfinite(errors), np.isfinite(found.path["gap"]))
    assert both.sum() > 100 and np.allclose(errors[both] / expected[both], 1, atol=30 * tol**0.5)
    assert not found.weight[:, 3].any()


def test_what_products_cannot_solve_is_left_to_coordinate_descent(by_products, monkeypatch):
    monkeypatch.setattr("coarlib.regression.solvers.lasso_products.MOST_STEPS", 2)
    problem = Problem.from_moments(moments_of(sparse_rows(60, 50, 4)))
    found = Lasso(0.01).solve(problem)
    assert found.gap.max() <= 1e-6


def test_products_start_from_weights_that_are_given(by_products, data):
    problem = Problem.from_moments(moments_of(data))
    cold = Lasso(0.02).solve(problem)
    warm = Lasso(0.02, start=cold.weight).solve(problem)
    far = Lasso(0.02, start=1e3 * np.ones_like(cold.weight)).solve(problem)
    assert np.allclose(cold.weight, warm.weight, atol=1e-3)
    assert np.allclose(cold.weight, far.weight, atol=1e-3)
    assert warm.iterations < cold.iterations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs held-out rows"),
        ({"lam": -0.1}, "not negative"),
        ({"lam": 0.1, "l1_ratio": 0}, "l1_ratio"),
        ({"lam": 0.1, "tol": 0}, "tolerance"),
        ({"lam": 0.1, "num_lambdas": 0}, "at least one"),
        ({"lam": 0.1, "eps": 2.0}, "eps"),
    ],
)
def test_bad_options_are_refused(data, arguments, message):
    with pytest.raises(RegressionError, match=message):
        Lasso(**arguments).solve(Problem.from_moments(moments_of(data)))

"""Least squares and ridge against scikit-learn and against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regression_problems import linear_rows
from sklearn import linear_model
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from coarlib.errors import RegressionError
from coarlib.regression import LeastSquares, Moments, Problem, Ridge, fit
from coarlib.regression.rows import ArrayRows
from coarlib.regression.solvers.least_squares import condition_number
from coarlib.regression.solvers.leave_one_out import leave_one_out_errors
from coarlib.regression.solvers.ridge_path import RidgePath, lambda_grid

CLOSE = 2e-5  # float32 products in X'Y
CERTIFIED = 1e-12


@pytest.fixture
def noisy():
    return linear_rows(400, 20, 7, noise=0.5)


@pytest.fixture
def few_rows():
    return linear_rows(30, 60, 5, noise=0.5)


def problem_of(data):
    return Problem.from_moments(Moments.from_arrays(data.masks, data.outputs))


def standardised(masks):
    return StandardScaler().fit_transform(masks.astype(float))


def test_least_squares_matches_scikit_learn(noisy):
    ours = fit(Moments.from_arrays(noisy.masks, noisy.outputs), "least_squares")
    theirs = LinearRegression().fit(noisy.masks, noisy.outputs)
    assert np.allclose(ours.weight, theirs.coef_.T, atol=CLOSE)
    assert np.allclose(ours.bias, theirs.intercept_, atol=20 * CLOSE)
    assert ours.gap.max() < CERTIFIED
    assert np.allclose(ours.predict(noisy.masks), theirs.predict(noisy.masks), atol=20 * CLOSE)


def test_standard_errors_match_the_closed_form(noisy):
    ours = fit(Moments.from_arrays(noisy.masks, noisy.outputs), "least_squares")
    design = np.column_stack([np.ones(len(noisy.masks)), noisy.masks])
    _, rss, _, _ = np.linalg.lstsq(design, noisy.outputs, rcond=None)
    sigma2 = rss / (len(design) - design.shape[1])
    expected = np.sqrt(np.outer(np.diag(np.linalg.inv(design.T @ design))[1:], sigma2))
    assert np.allclose(ours.standard_error, expected, rtol=1e-4)
    low, high = ours.interval()
    assert np.mean((low < noisy.weight) & (noisy.weight < high)) > 0.85


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_raw_units_with_float16_outputs(keep):
    data = linear_rows(6000, 50, 4, keep=keep, dtype=np.float16)
    ours = fit(Moments.from_arrays(data.masks, data.outputs), "least_squares")
    assert np.abs(ours.weight - data.weight).max() < 2e-2
    shrunk, _ = ours.standardised()  # what upstream saves
    assert np.median(shrunk / ours.weight) == pytest.approx(np.sqrt(keep * (1 - keep)), rel=0.02)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 300.0])
def test_ridge_matches_scikit_learn(noisy, alpha):
    n = len(noisy.masks)
    ours = fit(Moments.from_arrays(noisy.masks, noisy.outputs), "ridge", lam=alpha / n)
    theirs = linear_model.Ridge(alpha=alpha).fit(standardised(noisy.masks), noisy.outputs)
    assert np.allclose(ours.standardised()[0], theirs.coef_.T, atol=CLOSE)
    assert ours.gap.max() < CERTIFIED


def test_ridge_errors_are_the_posteriors_with_the_bias_of_shrinkage(noisy):
    lam, n = 0.2, len(noisy.masks)
    solution = Ridge(lam).solve(problem_of(noisy))
    x, sd = standardised(noisy.masks), noisy.masks.std(0)[:, None]
    inverse = np.linalg.inv(x.T @ x / n + lam * np.eye(x.shape[1]))
    hat = np.trace(inverse @ x.T @ x / n) + 1
    y = noisy.outputs - noisy.outputs.mean(0)
    weight = inverse @ x.T @ y / n
    sigma = np.sqrt(((y - x @ weight) ** 2).sum(0) / (n - hat))
    left = lam * np.diag(inverse)[:, None]  # of the prior variance σ² / (n λ)
    variance = left * sigma**2 / (n * lam)
    expected = np.sqrt(variance + (weight * left / (1 - left)) ** 2) / sd
    assert np.allclose(solution.details["degrees_of_freedom"], hat)
    assert np.allclose(solution.error_feature, expected, rtol=1e-4)


@pytest.mark.parametrize(("rows", "power"), [(90, 1), (200, 2)])
def test_robust_errors_are_hc2_or_hc3(noisy, rows, power):
    masks, outputs = noisy.masks[:rows], noisy.outputs[:rows]
    source = ArrayRows(masks, outputs)
    ours = fit(Moments.from_rows(source), "least_squares", rows=(source, np.arange(rows)))
    design = np.column_stack([np.ones(rows), masks])
    inverse = np.linalg.inv(design.T @ design)
    left = 1 - ((design @ inverse) * design).sum(1)
    residual = outputs - design @ inverse @ design.T @ outputs
    share = residual**2 / left[:, None] ** power
    expected = np.sqrt(((design @ inverse) ** 2).T @ share)[1:]
    assert np.allclose(ours.standard_error, expected, rtol=1e-3)
    assert f"HC{power + 1}" in ours.summary["errors"]


def test_many_rows_are_drawn_for_robust_errors():
    data = linear_rows(6000, 30, 8, keep=0.8, noise=1.0, seed=3)
    ablated = (~data.masks).sum(1)
    outputs = data.outputs + data.outputs.std() * (ablated / 6)[:, None] * (
        np.random.default_rng(5).standard_normal(data.outputs.shape)
    )
    source = ArrayRows(data.masks, outputs)
    rows = (source, np.arange(len(outputs)))
    moments = Moments.from_rows(source)
    whole, drawn, again, equal = (
        fit(moments, LeastSquares(errors=errors), rows=rows)
        for errors in ("robust", "auto", "auto", "classical")
    )
    assert "from 1,500 rows" in drawn.summary["errors"]
    assert "rows" not in whole.summary["errors"]
    ratio = drawn.standard_error / whole.standard_error
    assert abs(np.median(ratio) - 1) < 0.02 and np.abs(ratio - 1).max() < 0.2
    assert np.array_equal(drawn.standard_error, again.standard_error)
    assert (equal.standard_error < whole.standard_error).mean() > 0.9
    with pytest.raises(RegressionError, match="not their moments"):
        fit(moments, LeastSquares(errors="robust"))


def test_where_no_honest_error_is_known_none_is_given(few_rows):
    moments = Moments.from_arrays(few_rows.masks, few_rows.outputs)
    for solver in ("least_squares", "ridge", "shared_prior", "tempered_prior"):
        found = fit(moments, solver)
        assert found.standard_error is None
        with pytest.raises(RegressionError, match="no standard errors"):
            found.interval()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(8, 60), features=st.integers(2, 30), seed=st.integers(0, 999))
def test_gcv_equals_its_definition(rows, features, seed):
    data = linear_rows(rows, features, 3, keep=0.6, noise=0.7, seed=seed)
    problem = problem_of(data)
    if problem.num_active == 0:
        return
    path = RidgePath(problem)
    lams = np.array([10.0, 0.3, 0.01])
    x = (data.masks - problem.moments.mean_mask)[:, problem.active] / problem.scale
    y = data.outputs - data.outputs.mean(0)
    for lam, ours in zip(lams, path.gcv(lams, slice(None)), strict=True):
        hat = x @ np.linalg.solve(x.T @ x + rows * lam * np.eye(x.shape[1]), x.T)
        left = rows - np.trace(hat) - 1
        expected = rows * ((y - hat @ y) ** 2).sum(0) / left**2
        assert np.allclose(ours, expected, rtol=1e-3)


def test_gcv_picks_what_leave_one_out_picks(few_rows):
    grid = lambda_grid()
    solution = Ridge(lams=grid).solve(problem_of(few_rows))
    x = standardised(few_rows.masks)
    theirs = RidgeCV(alphas=grid * len(x)).fit(x, few_rows.outputs)
    ratio = solution.lam[0] * len(x) / theirs.alpha_
    assert 0.05 < ratio < 20


def test_path_solutions_match_cholesky_and_carry_certificates(noisy):
    problem = problem_of(noisy)
    path = RidgePath(problem).solution(np.full(7, 0.05), "path")
    direct = Ridge(0.05).solve(problem)
    assert np.allclose(path.weight, direct.weight, atol=1e-6)
    assert np.allclose(path.error_feature, direct.error_feature)
    assert path.gap.max() < CERTIFIED


@pytest.mark.parametrize("choose", ["validation", "folds"])
def test_lambda_by_rows_matches_brute_force(noisy, choose):
    folds = [
        Moments.from_arrays(m, y)
        for m, y in zip(
            np.array_split(noisy.masks, 4), np.array_split(noisy.outputs, 4), strict=True
        )
    ]
    whole = folds[0] + folds[1] + folds[2] + folds[3]
    grid = np.array([3.0, 0.3, 0.03, 1e-3])
    if choose == "validation":
        problem = replace(Problem.from_moments(whole - folds[3]), validation=folds[3])
        tests = [3]
    else:
        problem, tests = replace(Problem.from_moments(whole), folds=tuple(folds)), range(4)
    solution = Ridge(lams=grid, choose=choose, pooled=False).solve(problem)
    parts = np.array_split(np.arange(len(noisy.masks)), 4)
    errors = np.zeros((4, 7))
    for test in tests:
        train = np.setdiff1d(np.arange(len(noisy.masks)), parts[test])
        scaler = StandardScaler().fit(noisy.masks[train].astype(float))
        x, held = (scaler.transform(noisy.masks[i].astype(float)) for i in (train, parts[test]))
        for index, lam in enumerate(grid):
            model = linear_model.Ridge(alpha=lam * len(train)).fit(x, noisy.outputs[train])
            errors[index] += ((model.predict(held) - noisy.outputs[parts[test]]) ** 2).sum(0)
    assert np.array_equal(solution.lam, grid[np.argmin(errors, 0)])


def test_too_few_rows_give_the_smallest_norm(few_rows):
    ours = fit(Moments.from_arrays(few_rows.masks, few_rows.outputs), "least_squares")
    assert "smallest norm" in ours.summary["status"]
    x = few_rows.masks.astype(float)
    scale = x.std(0)
    varying = scale > 0
    x = (x - x.mean(0))[:, varying] / scale[varying]
    expected = np.linalg.pinv(x) @ (few_rows.outputs - few_rows.outputs.mean(0))
    assert np.allclose(ours.standardised()[0][varying], expected, atol=1e-4)
    assert ours.standard_error is None
    assert condition_number(problem_of(few_rows)) == np.inf


def test_features_that_move_together_share_the_effect():
    data = linear_rows(200, 5, 2)
    data.masks[:, 4] = data.masks[:, 3]
    data.outputs = data.masks @ data.weight
    ours = fit(Moments.from_arrays(data.masks, data.outputs), "least_squares")
    assert "linear combinations" in ours.summary["status"]
    assert np.allclose(ours.weight[3], ours.weight[4], atol=CLOSE)
    assert np.allclose(ours.weight[3] * 2, data.weight[3] + data.weight[4], atol=10 * CLOSE)


def test_leave_one_out_design_is_singular_but_solved():
    masks = ~np.eye(12, dtype=bool)
    effect = np.arange(12.0)[:, None]
    ours = fit(Moments.from_arrays(masks, masks @ effect), "least_squares")
    assert np.allclose(ours.weight[:, 0], effect[:, 0] - effect.mean(), atol=1e-4)


@pytest.mark.parametrize("solver", ["least_squares", "ridge"])
def test_what_never_varies_gets_zero(solver):
    data = linear_rows(80, 6, 3, noise=0.1)
    data.masks[:, 2] = True
    data.outputs[:, 1] = 7.0
    ours = fit(Moments.from_arrays(data.masks, data.outputs), solver)
    assert not ours.weight[2].any() and not ours.weight[:, 1].any()
    assert ours.bias[1] == pytest.approx(7.0)
    assert np.isfinite(ours.weight).all() and np.isfinite(ours.bias).all()


@pytest.mark.parametrize("solver", ["least_squares", "ridge"])
def test_no_feature_varies(solver):
    masks = np.ones((10, 3), bool)
    ours = fit(Moments.from_arrays(masks, np.arange(10.0)[:, None]), solver)
    assert not ours.weight.any()
    assert ours.bias == pytest.approx([4.5])


def test_bad_options_are_refused(noisy):
    moments = Moments.from_arrays(noisy.masks, noisy.outputs)
    with pytest.raises(RegressionError, match="did you mean 'ridge'"):
        fit(moments, "rigde")
    for lam in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RegressionError, match="not negative"):
            fit(moments, "ridge", lam=lam)
    with pytest.raises(RegressionError, match="does not take"):
        fit(moments, "least_squares", lam=1.0)
    with pytest.raises(RegressionError, match="positive finite"):
        fit(moments, "ridge", lams=np.array([1.0, -1.0]))
    with pytest.raises(RegressionError, match="at least 2 folds"):
        fit(moments, "ridge", choose="folds")
    with pytest.raises(RegressionError, match="not by 'luck'"):
        Ridge(choose="luck")
    with pytest.raises(RegressionError, match="has its options already; lam cannot"):
        fit(moments, Ridge(), lam=1.0)


def test_leave_one_out_errors_are_exact(noisy):
    few = slice(0, 60)
    masks, outputs = noisy.masks[few], noisy.outputs[few]
    problem = Problem.from_moments(Moments.from_arrays(masks, outputs))
    grid = np.array([0.5, 0.05])
    source = ArrayRows(masks, outputs)
    problem = replace(problem, source=source)
    ours = leave_one_out_errors(RidgePath(problem), grid)
    x = (masks - problem.moments.mean_mask)[:, problem.active] / problem.scale
    for lam, errors in zip(grid, ours, strict=True):
        expected = np.zeros(7)
        for i in range(60):
            rest = np.arange(60) != i
            model = linear_model.Ridge(alpha=60 * lam).fit(x[rest], outputs[rest])
            expected += (model.predict(x[i : i + 1])[0] - outputs[i]) ** 2 / 60
        assert np.allclose(errors, expected, rtol=1e-3)


def test_lambda_by_leave_one_out_is_ridge_cvs(noisy):
    few = slice(0, 60)
    source = ArrayRows(noisy.masks[few], noisy.outputs[few])
    problem = Problem.from_moments(Moments.from_rows(source))
    grid = np.array([5.0, 1.0, 0.2, 0.04, 0.008])
    problem = replace(problem, source=source)
    chosen = Ridge(lams=grid, choose="leave_one_out", pooled=False).solve(problem)
    x = standardised(source.masks)
    theirs = RidgeCV(alphas=60 * grid, alpha_per_target=True).fit(x, source.outputs)
    assert np.allclose(chosen.lam * 60, theirs.alpha_)


@pytest.mark.parametrize("solver", ["least_squares", "ridge", "shared_prior", "lasso"])
def test_outputs_of_any_size_are_fitted_or_refused(noisy, solver):
    small = fit((noisy.masks, noisy.outputs), solver, held_out=50)
    large = fit((noisy.masks, 1e36 * noisy.outputs), solver, held_out=50)
    assert np.allclose(large.weight / np.float32(1e36), small.weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(RegressionError, match=r"beyond float32|no bound"):
        fit((noisy.masks, 1e150 * noisy.outputs), solver, held_out=50)

"""Solvers without a Gram matrix reach the answers of those with one, and say how near they are."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from regression_problems import linear_rows
from torch.overrides import TorchFunctionMode

from coarlib.errors import RegressionError
from coarlib.interop import fast_l1
from coarlib.interop.fast_l1 import (
    RowLoader,
    calc_max_lambda,
    fit_with_fast_l1,
    train_saga,
)
from coarlib.interop.fast_l1_package import IndicesFollow, check_version, installed_regressor
from coarlib.regression import Lasso, Moments, Problem, fit
from coarlib.regression.rows import ArrayRows
from coarlib.regression.solvers.lasso import largest_lambda
from coarlib.regression.stream import StreamProblem, lasso_gap

CLOSE = 2e-3


@pytest.fixture
def source():
    data = linear_rows(300, 25, 4, keep=0.8, noise=1.0)
    data.masks[:, 6] = True
    data.outputs[7, 1] = np.nan
    return ArrayRows(data.masks, data.outputs)


def fits(source, solver, **options):
    positions = np.arange(300)
    moments = Moments.from_rows(source, positions, with_pairs=False)
    return fit(moments, solver, rows=(source, positions), **options)


@pytest.mark.parametrize("lam", [0.0, 0.05])
def test_conjugate_gradients_match_cholesky(source, lam):
    ours = fits(source, "conjugate_gradients", lam=lam)
    exact = fit(Moments.from_rows(source), "ridge", lam=lam)
    assert np.allclose(ours.weight, exact.weight, atol=CLOSE)
    assert np.allclose(ours.bias, exact.bias, atol=20 * CLOSE)
    assert ours.summary["relative_gradient"] < 1e-4
    assert not ours.weight[6].any()
    finite = np.isfinite(source.outputs).all(1)
    x, y = source.masks[finite], source.outputs[finite]
    left = (y - ours.predict(x)).var(0) / y.var(0)
    assert (ours.gap < 1e-6).all() if lam else np.allclose(ours.gap, left, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [32, 77])
def test_saga_reaches_the_certified_lasso(source, batch_size):
    ours = fits(source, "saga", lam=0.05, tol=1e-5, batch_size=batch_size)
    exact = Lasso(0.05, tol=1e-10).solve(Problem.from_moments(Moments.from_rows(source)))
    assert ours.gap.max() <= 1e-5
    assert np.allclose(ours.weight, exact.weight, atol=10 * CLOSE)


def test_saga_that_runs_out_of_epochs_says_so(source):
    ours = fits(source, "saga", lam=0.01, max_epochs=2, lr=1e-4)
    assert "stopped above the gap" in ours.summary["status"]
    assert ours.gap.max() > 1e-2


def test_the_streamed_gap_is_the_kernels(source):
    moments = Moments.from_rows(source)
    problem = Problem.from_moments(moments)
    solution = Lasso(0.05, tol=0.1).solve(problem)
    stream = StreamProblem.from_source(moments, source, np.arange(300))
    weight = torch.from_numpy(solution.weight[problem.active] * problem.scale[:, None])
    gap = lasso_gap(stream, weight, torch.full((4,), 0.05, dtype=torch.float64), slice(None))
    assert np.allclose(gap, solution.gap, atol=1e-4)


def test_bad_options(source):
    for solver, options in [
        ("saga", {}),
        ("saga", {"lam": 0.0}),
        ("saga", {"lam": 1.0, "batch_size": 0}),
        ("conjugate_gradients", {"lam": -1.0}),
    ]:
        with pytest.raises(RegressionError):
            fits(source, solver, **options)
    with pytest.raises(RegressionError, match="pass rows"):
        fit(Moments.from_rows(source), "saga", lam=1.0)


@pytest.fixture
def clean():
    data = linear_rows(240, 15, 4, keep=0.8, noise=2.0)
    data.weight[5:] = 0
    data.outputs = (data.masks @ data.weight + data.outputs * 0.2).astype(np.float32)
    return ArrayRows(data.masks, data.outputs)


def test_largest_lambda_is_that_of_the_standardised_problem(clean):
    loader = RowLoader(clean, np.arange(240), 48)
    expected = largest_lambda(Problem.from_moments(Moments.from_rows(clean)))
    assert np.allclose(calc_max_lambda(loader), expected, rtol=1e-4)


@pytest.mark.parametrize("lr", [None, 0.02])
def test_train_saga_fits_what_fast_l1_is_meant_to(clean, lr):
    loader = RowLoader(clean, np.arange(240), 30)
    weight, bias = torch.zeros(15, 4), torch.zeros(4)
    lam = torch.tensor([0.02, 0.05, 0.1, 0.2])
    kept = train_saga(
        weight, bias, loader, None, lr=lr, start_lams=lam, lam_decay=1.0, num_lambdas=1,
        early_stop_freq=3, early_stop_eps=1e-11,
    )  # fmt: skip
    problem = Problem.from_moments(Moments.from_rows(clean))
    exact = Lasso(lam.double().numpy(), tol=1e-10).solve(problem)
    assert torch.equal(kept, lam)
    assert np.allclose(weight.numpy(), exact.weight * problem.scale[:, None], atol=CLOSE)
    assert np.allclose(bias, clean.outputs.mean(0), atol=10 * CLOSE)


def test_train_saga_follows_a_path_and_keeps_the_best_lambda(clean, tmp_path):
    train, held = np.arange(160), np.arange(160, 240)
    loaders = [RowLoader(clean, rows, 20) for rows in (train, held)]
    weight, bias = torch.zeros(15, 4), torch.zeros(4)
    start = calc_max_lambda(loaders[0])
    kept = train_saga(
        weight, bias, *loaders, lr=None, start_lams=start, lam_decay=0.5, num_lambdas=8,
        early_stop_eps=1e-9, logdir=tmp_path / "log", min_lams_to_try=3,
    )  # fmt: skip
    log = np.load(tmp_path / "log" / "path.npz")
    for t in range(4):
        mine = log["target"] == t
        best = log["lam"][mine][np.argmin(log["validation_error"][mine])]
        assert kept[t] == pytest.approx(best, rel=1e-5)
    assert (kept < start).all()


def test_fast_l1s_result_comes_back_in_raw_units(clean):
    result = fit_with_fast_l1(
        clean, np.arange(200), np.arange(200, 240), lr=0.02, num_lambdas=1, eps=1e-4,
        max_lambda=0.0, batch_size=50, stop_eps=1e-12, regressor=fast_l1, device="cpu",
    )  # fmt: skip
    exact = fit(Moments.from_rows(clean), "least_squares")
    assert np.allclose(result.weight, exact.weight, atol=10 * CLOSE)


def test_fast_l1_gets_batches_of_one_size(clean):
    """Its buffers have the size of the training batches, when it scores others too."""

    class Regressor:
        sizes: ClassVar[list[set[int]]] = []

        def calc_max_lambda(self, loader):
            return torch.zeros(4)

        def train_saga(self, weight, bias, loader, val_loader, **options):
            both = [*loader, *(val_loader or [])]
            self.sizes.append({len(y) for _, y, _ in both})
            return torch.zeros(4)

    fit_with_fast_l1(
        clean, np.arange(210), np.arange(210, 240), lr=0.02, num_lambdas=1, eps=1e-4,
        batch_size=500, regressor=Regressor(), device="cpu",
    )  # fmt: skip
    assert Regressor.sizes == [{30}, {240}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
def test_without_cuda_fast_l1_says_what_to_do():
    with pytest.raises(RegressionError, match="needs a CUDA device"):
        installed_regressor()


def test_an_index_goes_to_the_device_of_the_tensor_that_it_indexes():
    """Here the other way round: the indexed tensor is the one on another device."""
    table, rows, mask = torch.zeros(6, 4, device="meta"), torch.arange(3), torch.ones(6) > 0
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                seen.append(args[1])
            return func(*args, **(kwargs or {}))

    with Spy(), IndicesFollow():
        assert table[rows, :2].shape == (3, 2)
        table[:, rows] = table[:, [2, 1, 0]]
        table[mask, :] = 0
    assert [i.device.type for i in (seen[0][0], seen[2][1], seen[3][0])] == ["meta"] * 3
    assert rows.device.type == "cpu" and seen[1][1] == [2, 1, 0]
    with IndicesFollow():
        assert torch.equal(torch.arange(6)[rows], rows)


def test_another_version_of_fast_l1_is_refused_by_name():
    other = SimpleNamespace(train_saga=lambda weight, bias, loader: None)
    with pytest.raises(RegressionError, match=r"lacks early_stop_eps, .*val_loader"):
        check_version(other)
    check_version(fast_l1)


def test_loader_batches_divide_the_rows(clean):
    loader = RowLoader(clean, np.arange(230), 50)
    assert loader.batch_size == 46 and len(list(loader)) == len(loader) == 5
    with pytest.raises(RegressionError, match="cannot be read"):
        RowLoader(clean, np.arange(0), 5)

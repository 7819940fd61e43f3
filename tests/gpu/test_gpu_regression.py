"""The regression on a CUDA device gives what it gives on the CPU."""

import numpy as np
import pytest
import torch

from coarlib.regression import ArrayRows, Moments, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLOSE = 1e-4


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    masks = rng.random((500, 45)) < 0.9
    outputs = masks @ rng.normal(size=(45, 9)) + rng.normal(size=(500, 9)) + 20
    masks[:, 3], outputs[:, 2], outputs[5, 1] = True, 1.0, np.nan
    return ArrayRows(masks, outputs)


def test_moments_are_the_same(rows):
    there, here = (Moments.from_rows(rows, device=device) for device in ("cuda", "cpu"))
    assert np.array_equal(there.pairs, here.pairs)
    assert there.num_excluded == here.num_excluded == 1
    assert np.allclose(there.cross, here.cross, atol=1e-2)


@pytest.mark.parametrize("solver", ["least_squares", "ridge", "shared_prior", "tempered_prior"])
@pytest.mark.parametrize("dual", [False, True])
def test_direct_solvers(rows, solver, dual):
    moments = Moments.from_rows(rows, with_pairs=not dual)
    read = (rows, np.arange(500))
    there, here = (fit(moments, solver, rows=read, device=d) for d in ("cuda", "cpu"))
    assert np.allclose(there.weight, here.weight, atol=CLOSE)
    assert (there.standard_error is None) is (here.standard_error is None)
    if here.standard_error is not None:
        assert np.allclose(there.standard_error, here.standard_error, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("solver", ["lasso", "saga", "conjugate_gradients"])
def test_iterative_solvers(rows, solver):
    moments = Moments.from_rows(rows)
    streamed = {} if solver == "lasso" else {"rows": (rows, np.arange(500))}
    there, here = (fit(moments, solver, lam=0.05, device=d, **streamed) for d in ("cuda", "cpu"))
    assert np.allclose(there.weight, here.weight, atol=0.02)

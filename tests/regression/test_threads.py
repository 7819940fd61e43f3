"""Fits leave the number of threads alone that the user or the launcher chose."""

import numpy as np
import pytest
import torch

from coarlib.regression.fit import fit
from coarlib.regression.moments import Moments
from coarlib.regression.rows import ArrayRows


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("wanted", [1, 2])
@pytest.mark.parametrize("solver", ["ridge", "lasso"])
def test_a_fit_leaves_torchs_threads_alone(solver, wanted, threads):
    torch.set_num_threads(wanted)
    generator = np.random.default_rng(0)
    rows = ArrayRows(generator.random((90, 8)) < 0.9, generator.random((90, 3)))
    fit(Moments.from_rows(rows), solver, **({"lam": 0.01} if solver == "lasso" else {}))
    assert torch.get_num_threads() == wanted

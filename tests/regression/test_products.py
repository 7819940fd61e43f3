"""X'Y by adding rows is the matrix product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coarlib.regression.moments import Moments, products
from coarlib.regression.moments.products import add_sparse_products, pays

ROUNDING = {np.float32: 1e-5, np.float64: 1e-13}  # relative to the sum of absolute terms


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2100),
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.03, 0.2, 1.0]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_it_is_the_matrix_product(rows, features, targets, share, complement, dtype):
    rng = np.random.default_rng(rows)
    rare = rng.random((rows, features)) < share
    values = rng.standard_normal((rows, targets)).astype(dtype)
    start = rng.standard_normal((features, targets))
    found = start.copy()
    add_sparse_products(~rare if complement else rare, complement, values, found)
    wanted = start + rare.T.astype(np.float64) @ values.astype(np.float64)
    assert np.all(np.abs(found - wanted) <= ROUNDING[dtype] * (1 + np.abs(values).sum(0)))


@pytest.mark.parametrize("keep", [0.05, 0.95])
@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_moments_are_the_same_by_either_way(monkeypatch, keep, layout):
    rng = np.random.default_rng(1)
    masks = rng.random((1500, 30)) < keep
    if layout == "strided":
        masks = np.asfortranarray(masks)
    outputs = rng.standard_normal((1500, 70)).astype(np.float16)
    outputs[[3, 700]] = np.nan
    taken = []
    monkeypatch.setattr("coarlib.regression.moments.sums.pays", lambda *a: taken.append(a) or True)
    adding = Moments.from_arrays(masks, outputs)
    monkeypatch.setattr("coarlib.regression.moments.sums.pays", lambda *a: False)
    product = Moments.from_arrays(masks, outputs)
    assert taken and all(share < 0.1 for share, *_ in taken)
    assert adding.num_rows == product.num_rows == 1498
    np.testing.assert_allclose(adding.cross, product.cross, atol=1e-3)
    assert (adding.pairs == product.pairs).all() and (adding.kept == product.kept).all()


def test_it_pays_only_where_entries_are_rare_and_targets_many(monkeypatch):
    monkeypatch.setattr(products, "_SPARSE", 0.18)
    assert pays(0.05, (5000, 2000), 1000)
    assert not pays(0.5, (5000, 2000), 1000) and not pays(0.05, (5000, 2000), 1)
    assert not pays(0.05, (500, 200), 1000)

"""Average ranks against scipy, over dtypes, sizes and ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from coarlib.errors import ScoringError
from coarlib.statistics import ranks as ranks_module
from coarlib.statistics.ranks import doubled_ranks

DTYPES = ["f2", "f4", "f8", ">f4", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


@pytest.fixture(params=["compiled", "sorted by NumPy"], autouse=True, scope="module")
def way(request):
    """Few values are sorted by NumPy, many by compiled code; here each way sorts all."""
    before = ranks_module.SMALL
    ranks_module.SMALL = 0 if request.param == "compiled" else 2**40
    yield
    ranks_module.SMALL = before


def expected(values):
    return 2 * rankdata(values, axis=0).T - (len(values) + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 7, 300, 70_000])
def test_ranks_equal_scipys_for_every_dtype(dtype, count):
    rng = np.random.default_rng(count)
    values = (rng.standard_normal((count, 3)) * 50).astype("i8").astype(dtype)
    if values.dtype.kind == "f":
        values += rng.standard_normal((count, 3)).astype(dtype)
    ranks, has_nan = doubled_ranks(values)
    assert ranks.dtype == np.int32
    assert not has_nan.any()
    assert np.array_equal(ranks, expected(values))
    assert np.array_equal(doubled_ranks(values.T, axis=1)[0], ranks)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", "i8", "u8"]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements={"allow_nan": False},
        fill=st.just(0),
    )
)
def test_ranks_equal_scipys_for_arbitrary_values(values):
    assert np.array_equal(doubled_ranks(values)[0], expected(values))


def test_zeros_of_both_signs_tie_and_infinities_are_ordered():
    values = np.array([[0.0], [-0.0], [np.inf], [-np.inf], [5e-324]])
    assert np.array_equal(doubled_ranks(values)[0], expected(values))


def test_float64_values_that_agree_in_their_leading_bits_are_told_apart():
    """Keys are cut to fit beside the row number; what was cut off must still decide."""
    rng = np.random.default_rng(0)
    near_one = 1 + rng.integers(0, 40, 3000) * np.finfo(float).eps
    tiny = rng.integers(0, 50, 3000) * 1e-300
    values = np.concatenate([[1e300, -1e300], near_one, tiny])[:, None]
    assert np.array_equal(doubled_ranks(values)[0], expected(values))


def test_columns_with_nan_are_flagged_and_zero():
    values = np.arange(12.0).reshape(4, 3)
    values[2, 1] = np.nan
    ranks, has_nan = doubled_ranks(values)
    assert has_nan.tolist() == [False, True, False]
    assert not ranks[1].any()
    assert np.array_equal(ranks[[0, 2]], expected(values[:, [0, 2]]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_arrays_have_empty_ranks(shape):
    assert doubled_ranks(np.empty(shape))[0].shape == shape[::-1]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ScoringError, match="2-D"):
        doubled_ranks(np.arange(3))
    with pytest.raises(ScoringError, match="real numbers"):
        doubled_ranks(np.ones((2, 2), dtype=complex))
    with pytest.raises(ScoringError, match="too many"):
        doubled_ranks(np.zeros((2**21 + 1, 1), dtype=bool))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_values_that_lie_unevenly_keep_their_order(dtype):
    """Long tails, lumps, infinities and zeros of both signs beside columns that lie evenly."""
    rng = np.random.default_rng(1)
    even = rng.standard_normal((6000, 6))
    tail = np.exp(3 * even[:, 0]).clip(max=6e4)
    lump = np.where(rng.random(6000) < 0.5, 0.0, 1 + 1e-4 * even[:, 1])
    extreme = np.where(np.abs(even[:, 2]) > 1, np.inf * even[:, 2], even[:, 2])
    zeros = np.where(rng.random(6000) < 0.5, -0.0, 0.0)
    with_nan = np.where(rng.random(6000) < 1e-3, np.nan, even[:, 3])
    columns = [even[:, 4], tail, lump, extreme, zeros, with_nan, 1e4 + even[:, 5]]
    values = np.stack(columns, axis=1).astype(dtype)
    ranks, has_nan = doubled_ranks(values)
    assert has_nan.tolist() == [False] * 5 + [True, False]
    assert np.array_equal(ranks[~has_nan], expected(values[:, ~has_nan]))
    assert not ranks[4:6].any()


def test_bytes_of_booleans_other_than_zero_are_true(tmp_path):
    stray = np.random.default_rng(2).integers(0, 3, (5000, 2)).astype(np.uint8)
    np.save(tmp_path / "stray.npy", stray.view(bool))
    mapped = np.load(tmp_path / "stray.npy", mmap_mode="r")
    for rows in (60, 5000):
        assert np.array_equal(doubled_ranks(mapped[:rows])[0], expected(stray[:rows] > 0))

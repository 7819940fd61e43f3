"""Moments: exact, additive, indifferent to order and blocks, careful with bad outputs."""

import functools
import itertools
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from regression_problems import linear_rows

from coarlib.errors import RegressionError
from coarlib.masks.digests import mask_digests
from coarlib.regression.moments import Accumulator, Moments, counts, int8_pairs, products
from coarlib.regression.moments.counts import PairCounter, column_sums

FLOAT32_PRODUCTS = 3e-6  # relative to the size of a sum of absolute products
FLOAT64 = 1e-12  # relative, of sums of float16 outputs


def brute_force(masks, outputs):
    x, y = masks.astype(np.float64), outputs.astype(np.float64)
    return x.T @ x, x.T @ y, y.sum(0), (y**2).sum(0)


def raw(moments):
    """Moments about zero."""
    return moments.with_offset(np.zeros(moments.num_targets))


def assert_same(a, b, outputs):
    assert a.num_rows == b.num_rows
    assert np.array_equal(a.pairs, b.pairs)
    scale = np.abs(outputs - outputs.mean(0)).sum(0) + 1e-300
    assert np.all(np.abs(a.cross - b.with_offset(a.offset).cross) <= FLOAT32_PRODUCTS * scale)
    apart = np.abs(a.output_variance - b.output_variance)
    assert np.all(apart <= FLOAT32_PRODUCTS * (a.output_variance + scale**2))


@pytest.mark.parametrize("small", [0, 20_000, 2**40])
@pytest.mark.parametrize("shape", [(1, 1), (63, 5), (64, 64), (65, 33), (200, 70), (3, 300)])
def test_pair_counts_are_exact(monkeypatch, shape, small):
    monkeypatch.setattr(counts, "SMALL", small)  # compiled, a product for some blocks, or for all
    rng = np.random.default_rng(1)
    masks = rng.random(shape) < 0.6
    counter = PairCounter(shape[1])
    for block in np.array_split(masks, 3):
        counter.add(block)
    assert np.array_equal(counter.total(), masks.astype(int).T @ masks.astype(int))
    assert np.array_equal(int8_pairs(torch.from_numpy(masks)).numpy(), counter.total())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, ">f4"])
@pytest.mark.parametrize("keep", [0.1, 0.95])
@pytest.mark.parametrize("small", [0, 2**31])
def test_moments_match_brute_force(monkeypatch, dtype, keep, small):
    monkeypatch.setattr(products, "_SMALL", small)
    data = linear_rows(300, 40, 6, keep=keep, noise=1.0)
    outputs = data.outputs.astype(dtype)
    m = Moments.from_arrays(data.masks, outputs, block_bytes=20_000)
    pairs, cross, total, square = brute_force(data.masks, outputs)
    assert np.array_equal(m.pairs, pairs)
    about_zero = raw(m)
    assert np.allclose(about_zero.cross, cross, rtol=1e-5)
    assert np.allclose(about_zero.total, total, rtol=1e-5)
    assert np.allclose(about_zero.square, square, rtol=1e-5)
    assert np.allclose(m.mean_output, outputs.astype(float).mean(0), rtol=1e-6)
    assert np.allclose(m.output_variance, outputs.astype(float).var(0), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    masks=hnp.arrays(bool, st.tuples(st.integers(2, 40), st.integers(1, 12))),
    seed=st.integers(0, 10_000),
    cut=st.floats(0, 1),
)
def test_moments_are_additive_and_order_independent(masks, seed, cut):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(len(masks), 3)) * 10 + 100
    whole = Moments.from_arrays(masks, outputs)
    order = rng.permutation(len(masks))
    assert_same(whole, Moments.from_arrays(masks[order], outputs[order]), outputs)
    split = min(max(1, int(cut * len(masks))), len(masks) - 1)
    first = Moments.from_arrays(masks[:split], outputs[:split])
    second = Moments.from_arrays(masks[split:], outputs[split:])
    assert_same(whole, first + second, outputs)
    assert_same(first, whole - second, outputs)


def test_large_means_do_not_cost_precision():
    data = linear_rows(5000, 30, 4, noise=1.0)
    outputs = data.outputs + 30_000
    m = Moments.from_arrays(data.masks, outputs)
    x, y = data.masks - data.masks.mean(0), outputs - outputs.mean(0)
    covariance = m.cross / m.num_rows - np.outer(m.mean_mask, m.total / m.num_rows)
    sampling = y.std(0) / np.sqrt(len(y))
    assert np.all(np.abs(covariance - x.T @ y / len(y)) < 1e-5 * sampling)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_with_bad_outputs_are_counted_and_left_out(bad):
    data = linear_rows(100, 8, 3)
    outputs = data.outputs.copy()
    outputs[[0, 57], [1, 2]] = bad
    good = np.setdiff1d(np.arange(100), [0, 57])
    m = Moments.from_arrays(data.masks, outputs, block_bytes=6_000)
    assert (m.num_rows, m.num_excluded) == (98, 2)
    assert_same(Moments.from_arrays(data.masks[good], outputs[good]), m, outputs[good])
    with pytest.raises(RegressionError, match="row 0, target 1"):
        Moments.from_arrays(data.masks, outputs, nonfinite="refuse")


def test_a_target_that_is_always_nan_is_an_error_that_says_what_to_do():
    data = linear_rows(10, 4, 2)
    outputs = data.outputs.copy()
    outputs[:, 1] = np.nan
    with pytest.raises(RegressionError, match=r"all 10 rows have targets with NaN.*nonfinite"):
        Moments.from_arrays(data.masks, outputs)


def test_constant_features_and_targets_are_named():
    data = linear_rows(50, 6, 4)
    data.masks[:, 2], data.masks[:, 5] = True, False
    data.outputs[:, 1] = 0.1
    m = Moments.from_arrays(data.masks, data.outputs)
    assert np.flatnonzero(m.constant_features).tolist() == [2, 5]
    assert np.flatnonzero(m.constant_targets).tolist() == [1]


def test_float16_sums_do_not_overflow():
    masks = np.random.default_rng(0).random((400, 3)) < 0.5
    outputs = (60_000 + 64 * masks[:, :1]).astype(np.float16)
    m = Moments.from_arrays(masks, outputs)
    assert np.allclose(m.mean_output, outputs.astype(float).mean(0))


def test_misuse_is_refused():
    data = linear_rows(20, 4, 2)
    m = Moments.from_arrays(data.masks, data.outputs)
    other = Moments.from_arrays(data.masks[:, :3], data.outputs)
    with pytest.raises(RegressionError, match="4 features and 2 targets"):
        m + other
    with pytest.raises(RegressionError, match="cannot subtract 20 rows"):
        Moments.from_arrays(data.masks[:5], data.outputs[:5]) - m
    with pytest.raises(RegressionError, match="nothing to fit"):
        Accumulator(3, 2).moments()
    with pytest.raises(RegressionError, match="nonfinite"):
        Accumulator(3, 2, nonfinite="ignore")
    with pytest.raises(RegressionError, match="float32 or float64"):
        Accumulator(3, 2, dtype=torch.float16)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_in_float64_shards_of_any_cut_add_up_to_one_pass(cuts, seed):
    data = linear_rows(300, 20, 4, seed=seed)
    outputs = (data.outputs + 50).astype(np.float16)
    whole = Moments.from_arrays(data.masks, outputs, dtype=torch.float64)
    bounds = [0, *sorted(cuts), 300]
    shards = [
        Moments.from_arrays(data.masks[a:b], outputs[a:b], dtype=torch.float64)
        for a, b in itertools.pairwise(bounds)
    ]
    np.random.default_rng(seed).shuffle(shards)
    found = raw(functools.reduce(operator.add, shards))
    assert np.array_equal(found.pairs, whole.pairs)
    for name in ("cross", "total", "square"):
        np.testing.assert_allclose(getattr(found, name), getattr(raw(whole), name), rtol=FLOAT64)


@pytest.mark.parametrize("small", [0, 2**22])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 256, 700])
def test_column_sums_are_those_of_numpy(monkeypatch, dtype, columns, small):
    monkeypatch.setattr(counts, "_SMALL_SUM", small)
    values = np.random.default_rng(0).normal(3, 2, size=(301, columns)).astype(dtype)
    wide = values.astype(np.float64)
    expected = np.stack([wide.sum(0), (wide**2).sum(0)])
    assert np.allclose(column_sums(torch.from_numpy(values)), expected, rtol=1e-13)
    values[7, 0], values[9, columns // 2] = np.nan, np.inf
    assert not torch.isfinite(column_sums(torch.from_numpy(values))[:, [0, columns // 2]]).any()


def test_moments_know_which_masks_are_in_the_sum():
    data = linear_rows(60, 9, 3)
    data.outputs[7, 1] = np.inf
    digests = mask_digests(data.masks)
    whole = Moments.from_arrays(data.masks, data.outputs, block_bytes=1)
    assert np.array_equal(whole.digests, np.sort(np.delete(digests, 7)))
    part = Moments.from_arrays(data.masks[40:], data.outputs[40:])
    assert np.array_equal((whole - part).digests, np.sort(np.delete(digests[:40], 7)))
    assert np.array_equal((whole - part + part).digests, whole.digests)
    assert np.array_equal(whole.targets(slice(1)).digests, whole.digests)

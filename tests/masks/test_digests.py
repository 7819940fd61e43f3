"""A mask's digest depends on its content and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coarlib.errors import MaskError
from coarlib.masks.digests import mask_digests

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 70)).flatmap(lambda s: arrays(bool, s))


@given(MASKS)
def test_equal_digests_are_equal_masks(masks):
    found = mask_digests(masks)
    assert found.dtype == np.uint64
    for row, digest in zip(masks, found, strict=True):
        assert np.array_equal(found == digest, (masks == row).all(1))


@given(MASKS, st.integers(0, 1000))
def test_order_type_and_shape_do_not_matter(masks, seed):
    order = np.random.default_rng(seed).permutation(len(masks))
    found = mask_digests(masks)
    assert np.array_equal(mask_digests(masks[order]), found[order])
    assert np.array_equal(mask_digests(masks.astype(np.float32)), found)
    assert np.array_equal(mask_digests(np.asfortranarray(masks)[:, None]), found)


def test_trailing_ablated_features_count():
    assert mask_digests(np.zeros((1, 7)))[0] != mask_digests(np.zeros((1, 8)))[0]


def test_digests_stay_what_they_are():
    """They are saved with attributions, so another version must find the same."""
    known = [18156952611011219534, 9096024099831457043]
    assert mask_digests(np.eye(2, dtype=bool)).tolist() == known


def test_a_mask_without_rows_is_refused():
    with pytest.raises(MaskError, match=r"\[rows, features\], not \[5\]"):
        mask_digests(np.ones(5, bool))

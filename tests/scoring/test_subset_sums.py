"""Subset sums are the exact sums, rounded once."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse

from coarlib.errors import ScoringError
from coarlib.scoring import masks_from_indices, subset_sums

SCORES = {
    "float32": lambda rng, n: rng.standard_normal((n, 3)).astype("f4"),
    "float64": lambda rng, n: rng.standard_normal((n, 3)),
    "float16": lambda rng, n: rng.standard_normal((n, 3)).astype("f2"),
    "three levels": lambda rng, n: rng.integers(-1, 2, (n, 3)) * 0.1,
    "integers": lambda rng, n: rng.integers(-9, 9, (n, 3)),
    "huge": lambda rng, n: rng.uniform(-1, 1, (n, 3)) * 1e305,
    "tiny": lambda rng, n: rng.standard_normal((n, 3)) * 1e-310,
    "spread": lambda rng, n: rng.standard_normal((n, 3)) * 2.0 ** rng.integers(-90, 0, (n, 3)),
    "zero": lambda rng, n: np.zeros((n, 3)),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("count", [1, 2, 3, 60, 400])
def test_sums_are_exact(kind, count):
    rng = np.random.default_rng(count)
    scores, masks = SCORES[kind](rng, count), rng.random((12, count)) < 0.5
    sums = subset_sums(scores, masks)
    for target, column in enumerate(scores.T):
        values = [Fraction(float(value)) for value in column]
        for row, mask in enumerate(masks):
            kept = sum((v for v, keep in zip(values, mask, strict=True) if keep), Fraction(0))
            assert sums[target, row] == float(kept)


def test_sums_do_not_depend_on_chunks_of_examples(monkeypatch):
    rng = np.random.default_rng(0)
    scores, masks = rng.standard_normal((300, 5)), rng.random((40, 300)) < 0.5
    whole = subset_sums(scores, masks)
    monkeypatch.setattr(sys.modules["coarlib.scoring.subset_sums"], "_CHUNK_BYTES", 0)
    np.testing.assert_array_equal(subset_sums(scores, masks), whole)


def test_every_kind_of_scores_and_masks_gives_the_same():
    rng = np.random.default_rng(0)
    scores = np.round(rng.standard_normal((30, 4)), 1).astype("f4")
    masks = rng.random((6, 30)) < 0.5
    expected = subset_sums(scores, masks)
    lists = [np.flatnonzero(mask) for mask in masks]
    for given in (masks.astype("u1"), masks.astype("f4"), torch.tensor(masks), lists, list(masks)):
        np.testing.assert_array_equal(subset_sums(scores, given), expected)
    for given in (torch.tensor(scores), sparse.csr_array(scores), np.asfortranarray(scores)):
        np.testing.assert_array_equal(subset_sums(given, masks), expected)


def test_non_finite_scores_poison_their_own_target_only():
    scores = np.ones((5, 3), dtype="f4")
    scores[2, 0], scores[3, 2] = np.nan, -np.inf
    sums = subset_sums(scores, np.eye(5, dtype=bool))
    assert np.isnan(sums).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_array_equal(sums[1], 1)


def test_index_lists_may_be_ragged_but_not_wrong():
    masks = masks_from_indices([[0, 2], [], np.array([3])], 4)
    assert masks.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    for indices, words in (
        ([[0, 4]], "subset 0 names example 4, but there are only 4"),
        ([[0], [-1]], "subset 1 names example -1"),
        ([[1, 1]], "subset 0 names an example twice"),
        ([[0.5]], "integer indices"),
    ):
        with pytest.raises(ScoringError, match=words):
            masks_from_indices(indices, 4)


def test_wrong_masks_are_named():
    scores = np.ones((4, 2))
    with pytest.raises(ScoringError, match=r"masks have shape \[3, 5\], but the scores are of 4"):
        subset_sums(scores, np.ones((3, 5), dtype=bool))
    with pytest.raises(ScoringError, match="masks_from_indices"):
        subset_sums(scores, np.array([[0, 1], [2, 3]]))
    with pytest.raises(ScoringError, match="other than 0 and 1"):
        subset_sums(scores, np.full((3, 4), 0.5))
    with pytest.raises(ScoringError, match="no masks"):
        subset_sums(scores, [])

"""Mislabel detection against scikit-learn; flipping labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from coarlib.errors import ScoringError
from coarlib.scoring import UndefinedCorrelationWarning, flip_label, mislabel_detection_auc


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 50))
def test_auc_and_curve_equal_scikit_learns_under_ties(seed, count, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, count) / 7
    wrong = rng.random(count) < 0.3
    wrong[:2] = True, False
    found = mislabel_detection_auc(scores, wrong)
    fpr, tpr, thresholds = metrics.roc_curve(wrong, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(found.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert found.auc == pytest.approx(metrics.roc_auc_score(wrong, scores), abs=1e-12)


def test_scores_that_say_nothing_have_an_auc_of_exactly_half():
    assert mislabel_detection_auc(np.zeros(999), np.arange(999) % 3 == 0).auc == 0.5


def test_the_order_of_examples_does_not_matter():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 5, 300), rng.random(300) < 0.1
    order = rng.permutation(300)
    assert mislabel_detection_auc(scores, wrong).auc == (
        mislabel_detection_auc(torch.tensor(scores)[order], torch.tensor(wrong)[order]).auc
    )


def test_bad_detection_input_is_named():
    with pytest.raises(ScoringError, match="0 of 4 examples are mislabelled"):
        mislabel_detection_auc(np.arange(4), np.zeros(4))
    with pytest.raises(ScoringError, match=r"both be \[n\]"):
        mislabel_detection_auc(np.arange(4), np.zeros(3))
    with pytest.raises(ScoringError, match="other than 0 and 1"):
        mislabel_detection_auc(np.arange(4), np.arange(4))
    with pytest.warns(UndefinedCorrelationWarning, match="1 of 3 scores are NaN"):
        found = mislabel_detection_auc([0, np.nan, 1], [1, 0, 0])
    assert np.isnan(found.auc)
    assert np.isnan(found.tpr).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 80), st.floats(0, 1), st.integers(2, 6))
def test_exactly_a_share_of_the_labels_is_flipped_to_others(seed, count, p, classes):
    labels = np.random.default_rng(seed).integers(0, classes, count)
    space = range(classes)
    flipped, indices = flip_label(labels, p, space, seed=seed)
    assert len(set(indices.tolist())) == len(indices) == int(p * count)
    np.testing.assert_array_equal(np.flatnonzero(flipped != labels), indices)
    assert np.isin(flipped, space).all()
    again, same = flip_label(labels, p, space, seed=seed)
    np.testing.assert_array_equal(flipped, again)
    np.testing.assert_array_equal(indices, same)


def test_the_new_label_is_uniform_among_the_others():
    flipped, _ = flip_label(np.full(30_000, 2), 1.0, [0, 2, 5, 9])
    values, counts = np.unique(flipped, return_counts=True)
    assert values.tolist() == [0, 5, 9]
    np.testing.assert_allclose(counts / 30_000, 1 / 3, atol=0.015)
    unknown, _ = flip_label(np.full(3000, 7), 1.0, [0, 1])  # not in the space: any will do
    assert np.unique(unknown).tolist() == [0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(40) % 4,
        (torch.arange(40) % 4).to(torch.uint8),
        np.arange(40, dtype=np.int32) % 4,
        list(np.arange(40) % 4),
    ],
)
def test_type_and_original_are_kept(labels):
    before = np.asarray(labels).copy()
    flipped, indices = flip_label(labels, 0.25)
    assert len(indices) == 10
    assert isinstance(flipped, torch.Tensor if torch.is_tensor(labels) else np.ndarray)
    if not isinstance(labels, list):
        assert flipped.dtype == labels.dtype
    np.testing.assert_array_equal(np.asarray(labels), before)


def test_flips_that_cannot_be_made_are_refused():
    with pytest.raises(ScoringError, match="only one label"):
        flip_label(np.zeros(10, dtype=int), 0.5)
    with pytest.raises(ScoringError, match="between 0 and 1"):
        flip_label(np.arange(3), 1.5)
    with pytest.raises(ScoringError, match=r"must be \[n\]"):
        flip_label(np.zeros((2, 2)), 0.5)

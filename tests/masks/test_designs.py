"""Mask designs: pure functions of (design, seed, row), with the distribution they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarlib.errors import SpecError
from coarlib.masks import MaskDesign, draw, parse_design

DESIGNS = [
    MaskDesign(kind="bernoulli", keep_prob=0.7, seed=5),
    MaskDesign(kind="fixed_size", size=4, seed=5),
    MaskDesign(kind="fixed_size", keep_prob=0.5, seed=5),
    MaskDesign(kind="stratified", keep_prob=0.5, seed=5, labels=(7, 7, -1, 2) * 3 + (2,)),
    MaskDesign(kind="class_balanced", per_class=2, seed=5, labels=(7, 7, -1, 2) * 3 + (2,)),
    MaskDesign(kind="leave_one_out"),
    MaskDesign(kind="explicit", kept=tuple((i % 13, 3) for i in range(14))),
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.kind)
def test_a_row_is_the_same_alone_in_any_order_and_in_any_company(design):
    together = draw(design, np.arange(14), 13)
    order = np.random.default_rng(0).permutation(14)
    assert (draw(design, order, 13) == together[order]).all()
    for row in range(14):
        assert (draw(design, [row], 13)[0] == together[row]).all()


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 300))
def test_fixed_size_keeps_exactly_that_many(seed, row, features):
    size = features // 3
    design = MaskDesign(kind="fixed_size", size=size, seed=seed)
    assert draw(design, [row], features).sum() == size


def test_the_stream_never_changes():
    # Raw Philox keyed by (seed, row): a store made today can be recomputed years from now.
    design = MaskDesign(kind="bernoulli", keep_prob=0.5, seed=42)
    expected = np.random.Philox(key=np.array([42, 7], np.uint64)).random_raw(6) < 2**63
    assert (draw(design, [7], 6)[0] == expected).all()
    assert draw(design, [0, 1], 8).astype(int).tolist() == [
        [0, 1, 0, 1, 1, 1, 1, 1],
        [1, 0, 0, 1, 1, 1, 0, 0],
    ]


def test_bernoulli_has_its_mean_and_independent_columns_and_rows():
    masks = draw(MaskDesign(kind="bernoulli", keep_prob=0.9, seed=0), np.arange(4000), 50)
    sd = np.sqrt(0.9 * 0.1)
    assert abs(masks.mean() - 0.9) < 5 * sd / np.sqrt(masks.size)
    assert np.abs(masks.mean(0) - 0.9).max() < 5 * sd / np.sqrt(4000)
    correlation = np.corrcoef(masks.T.astype(float)) - np.eye(50)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    assert len(np.unique(masks, axis=0)) > 3800


def test_different_seeds_differ():
    one, two = (draw(MaskDesign(keep_prob=0.5, seed=seed), [3], 200) for seed in (0, 1))
    assert (one != two).any()


def test_leave_one_out_ends_with_the_intact_model():
    masks = draw(MaskDesign(kind="leave_one_out"), np.arange(6), 5)
    assert (masks[:5] == ~np.eye(5, dtype=bool)).all()
    assert masks[5].all()


def test_explicit_lists():
    kept = draw(MaskDesign(kind="explicit", kept=((0, 2), ())), [0, 1], 4)
    ablated = draw(MaskDesign(kind="explicit", ablated=((0, 2), ())), [0, 1], 4)
    assert kept.tolist() == [[True, False, True, False], [False] * 4]
    assert (ablated == ~kept).all()


def test_keep_prob_one_keeps_all():
    assert draw(MaskDesign(kind="bernoulli", keep_prob=1.0), [0], 1000).all()


@given(st.dictionaries(st.text(max_size=6), st.integers() | st.text(max_size=4), max_size=4))
def test_arbitrary_designs_are_refused_in_words(content):
    with pytest.raises(SpecError):
        parse_design({**content, "kind": "explicit", "unknown": 1})


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.02, 1), st.integers(0, 2**40)
)
def test_strata_keep_their_share_and_balanced_classes_the_same_number(labels, share, seed):
    labels = np.array(labels)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)

    def kept_of_each(design):
        masks = draw(design, np.arange(5), len(labels), labels)
        return np.stack([np.bincount(codes[mask], minlength=len(counts)) for mask in masks])

    kept = kept_of_each(MaskDesign(kind="stratified", keep_prob=share, seed=seed))
    assert (kept.sum(axis=1) == round(share * len(labels))).all()
    assert (kept == kept[0]).all()
    assert np.abs(kept[0] - kept[0].sum() * counts / len(labels)).max() < 1
    least = int(counts.min())
    balanced = MaskDesign(kind="class_balanced", per_class=least, seed=seed)
    assert (kept_of_each(balanced) == least).all()
    in_all = MaskDesign(kind="class_balanced", size=least * len(counts), seed=seed)
    assert (
        draw(balanced, [3], len(labels), labels) == draw(in_all, [3], len(labels), labels)
    ).all()


def test_every_member_of_a_class_is_kept_equally_often():
    labels = np.array([0] * 6 + [1] * 18)
    for design, expected in (
        (MaskDesign(kind="stratified", size=8), [1 / 3, 1 / 3]),
        (MaskDesign(kind="class_balanced", per_class=3), [1 / 2, 1 / 6]),
    ):
        share = draw(design, np.arange(4000), 24, labels).mean(axis=0)
        np.testing.assert_allclose(share, np.take(expected, labels), atol=0.035)


@pytest.mark.parametrize(
    ("content", "labels", "message"),
    [
        ({"kind": "stratified", "keep_prob": 0.5}, None, "needs the class of each feature"),
        ({"kind": "stratified", "keep_prob": 0.5}, [0, 1], "one for each of the 4 features"),
        ({"kind": "class_balanced", "per_class": 2}, [0, 0, 0, 1], "class 1 has 1 features"),
        ({"kind": "class_balanced", "size": 3}, [0, 0, 1, 1], "not a multiple of the 2 classes"),
    ],
)
def test_labels_that_do_not_fit(content, labels, message):
    design = parse_design(content)
    with pytest.raises(SpecError, match=message):
        draw(design, [0], 4, None if labels is None else np.array(labels))


def test_a_design_by_classes_is_parsed_strictly():
    assert parse_design({"kind": "stratified", "size": 2, "labels": [1, 0]}).labels == (1, 0)
    for content, message in (
        ({"kind": "stratified"}, "exactly one of size and keep_prob"),
        (
            {"kind": "class_balanced", "size": 2, "per_class": 1},
            "exactly one of size and per_class",
        ),
        ({"kind": "class_balanced", "keep_prob": 0.5}, "not a key of a class_balanced design"),
        ({"kind": "stratified", "size": 2, "labels": "y"}, "labels must be a list"),
        ({"kind": "bernoulli", "keep_prob": 0.5, "labels": [1]}, "not a key of a bernoulli"),
    ):
        with pytest.raises(SpecError, match=message):
            parse_design(content)

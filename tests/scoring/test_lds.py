"""The LDS against scipy and dattri, and what peers get wrong."""

import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from coarlib.errors import ScoringError
from coarlib.scoring import UndefinedCorrelationWarning, lds, masks_from_indices

TOLERANCE = 1e-12


def problem(subsets=40, examples=200, targets=12, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((examples, targets)).astype("f4")
    masks = rng.random((subsets, examples)) < 0.5
    margins = masks @ scores.astype(float) + 5 * rng.standard_normal((subsets, targets))
    return scores, masks, margins


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [("spearman", stats.spearmanr), ("pearson", stats.pearsonr), ("kendall", stats.kendalltau)],
)
def test_lds_is_the_correlation_of_summed_scores_with_outputs(kind, oracle):
    scores, masks, margins = problem()
    result = lds(scores, masks, margins, kind, resamples=50)
    predicted = masks @ scores.astype(float)
    expected = np.array([oracle(x, y) for x, y in zip(predicted.T, margins.T, strict=True)])
    np.testing.assert_allclose(result.correlation, expected[:, 0], atol=TOLERANCE)
    np.testing.assert_allclose(result.p_value, expected[:, 1], atol=TOLERANCE)
    assert result.mean == pytest.approx(expected[:, 0].mean(), abs=TOLERANCE)
    assert result.interval.low < result.mean < result.interval.high
    assert (result.num_targets, result.num_scored, result.num_subsets) == (12, 12, 40)
    assert result.share_significant() == np.mean(expected[:, 1] < 0.05)


def test_dattris_own_unit_test_vector():
    """r = [1, .8660254], p = [0, .3333], as in the suite of dattri 0.3.0."""
    scores = np.eye(3, 2)
    scores[1, 0], scores[2, 0] = 2, 3
    scores[:, 1] = [1, 1, 2]
    margins = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    result = lds(scores, [[0], [1], [2]], margins, resamples=0)
    np.testing.assert_allclose(result.correlation, [1, 0.8660254], atol=1e-7)
    np.testing.assert_allclose(result.p_value, [0, 1 / 3], atol=1e-7)


def test_sums_that_are_equal_tie_whatever_the_order_of_summation():
    """Three-level scores: a float32 product breaks ties and moves the LDS by about 0.02."""
    rng = np.random.default_rng(0)
    levels = rng.integers(-1, 2, (500, 30))
    masks = rng.random((60, 500)) < 0.5
    margins = rng.standard_normal((60, 30))
    exact = np.array(
        [stats.spearmanr(x, y)[0] for x, y in zip((masks @ levels).T, margins.T, strict=True)]
    )
    scores = (levels * 0.1).astype("f4")
    order = rng.permutation(500)
    for dtype in ("f4", "f8"):
        given = scores.astype(dtype)
        np.testing.assert_allclose(
            lds(given, masks, margins, resamples=0).correlation, exact, atol=TOLERANCE
        )
        np.testing.assert_array_equal(
            lds(given[order], masks[:, order], margins, resamples=0).correlation,
            lds(given, masks, margins, resamples=0).correlation,
        )
    careless = masks.astype("f4") @ scores
    broken = [stats.spearmanr(x, y)[0] for x, y in zip(careless.T, margins.T, strict=True)]
    assert np.abs(broken - exact).max() > 1e-3  # the defect is real on this problem


def test_losses_need_the_sign_said():
    scores, masks, margins = problem()
    better = lds(scores, masks, margins, resamples=0)
    for kind in ("spearman", "pearson", "kendall"):
        better = lds(scores, masks, margins, kind, resamples=20)
        loss = lds(scores, masks, -margins, kind, higher_is_better=False, resamples=20)
        np.testing.assert_allclose(loss.correlation, better.correlation, atol=TOLERANCE)
        np.testing.assert_allclose(loss.replicates, better.replicates, atol=TOLERANCE)
        assert lds(scores, masks, -margins, kind, resamples=0).mean == pytest.approx(-better.mean)


def test_runs_are_averaged_before_ranking():
    scores, masks, margins = problem()
    runs = margins[:, None] + np.random.default_rng(1).standard_normal((40, 5, 12))
    np.testing.assert_array_equal(
        lds(scores, masks, runs, resamples=0).correlation,
        lds(scores, masks, runs.mean(axis=1), resamples=0).correlation,
    )


def test_subsets_may_be_ragged_index_lists():
    scores, masks, margins = problem()
    lists = [np.flatnonzero(mask) for mask in masks]
    assert len({len(subset) for subset in lists}) > 1
    expected = lds(scores, masks, margins)
    for subsets in (lists, [s.tolist() for s in lists], masks_from_indices(lists, 200)):
        found = lds(scores, subsets, margins)
        np.testing.assert_array_equal(found.correlation, expected.correlation)
        assert found.interval == expected.interval


def test_memory_mapped_input_in_blocks_gives_the_same(tmp_path, monkeypatch):
    scores, masks, margins = problem()
    whole = lds(scores, masks, margins)
    paths = [tmp_path / f"{name}.npy" for name in "smy"]
    for path, array in zip(paths, (scores, masks, margins), strict=True):
        np.save(path, array)
    monkeypatch.setattr(sys.modules["coarlib.scoring.lds"], "BLOCK_BYTES", 8 * 200 * 5)
    mapped = lds(*(np.load(path, mmap_mode="r") for path in paths))
    np.testing.assert_array_equal(mapped.correlation, whole.correlation)
    np.testing.assert_allclose(mapped.replicates, whole.replicates, atol=TOLERANCE)


def test_undefined_targets_are_counted_named_and_kept_out_of_the_mean():
    scores, masks, margins = problem()
    scores[:, 2] = 0
    margins[:, 5] = 1
    margins[3, 7] = np.nan
    scores[0, 9] = np.inf
    with pytest.warns(UndefinedCorrelationWarning, match="2 of 12 targets hold a NaN") as caught:
        result = lds(scores, masks, margins)
    assert caught[0].filename == __file__
    assert np.flatnonzero(np.isnan(result.correlation)).tolist() == [2, 5, 7, 9]
    assert (result.num_constant, result.num_nan, result.num_scored) == (2, 2, 8)
    assert result.mean == pytest.approx(np.nanmean(result.correlation), abs=TOLERANCE)
    assert result.interval.low < result.mean < result.interval.high
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        nothing = lds(scores[:, [2]], masks, margins[:, [2]])
    assert np.isnan([nothing.mean, nothing.interval.low, nothing.share_significant()]).all()


def test_tensors_and_bfloat16_scores():
    scores, masks, margins = problem()
    low = torch.tensor(scores).bfloat16()
    np.testing.assert_array_equal(
        lds(low, torch.tensor(masks), torch.tensor(margins), resamples=0).correlation,
        lds(low.float().numpy(), masks, margins, resamples=0).correlation,
    )


def test_shapes_that_do_not_fit_are_said_in_one_sentence():
    scores, masks, margins = problem()
    for args, words in (
        ((scores, masks[:, :-1], margins), r"masks have shape \[40, 199\]"),
        ((scores, masks[:-1], margins), "39 masks but margins of 40 subsets"),
        ((scores, masks, margins[:, :-1]), "12 targets but margins for 11"),
        ((scores[:, 0], masks, margins), r"scores must be \[N, T\]"),
        ((scores, masks, margins[:, 0]), r"margins must be \[M, T\]"),
    ):
        with pytest.raises(ScoringError, match=words) as caught:
            lds(*args)
        assert "\n" not in str(caught.value)


def test_dattri_agrees_where_its_float32_sums_do_not_matter():
    metric = pytest.importorskip("dattri.metric", reason="dattri is not installed")
    scores, _, _ = problem()
    rng = np.random.default_rng(4)
    indices = np.stack([rng.choice(200, 100, replace=False) for _ in range(40)])
    margins = rng.standard_normal((40, 12))
    theirs = metric.lds(
        torch.tensor(scores).double(), (torch.tensor(margins), torch.tensor(indices))
    )
    mine = lds(scores, masks_from_indices(indices, 200), margins, resamples=0)
    np.testing.assert_allclose(mine.correlation, theirs[0], atol=TOLERANCE)
    np.testing.assert_allclose(mine.p_value, theirs[1], atol=TOLERANCE)

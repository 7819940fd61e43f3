"""The LDS against scipy and dattri, and what peers get wrong."""

import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from coarlib.errors import ScoringError
from coarlib.masks.digests import mask_digests
from coarlib.scoring import (
    InfiniteOutputsWarning,
    RowsLeftOutWarning,
    UndefinedCorrelationWarning,
    lds,
    masks_from_indices,
    noise_ceiling,
)

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
    result = lds(scores, masks, margins, kind)
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
    result = lds(scores, [[0], [1], [2]], margins, interval=False)
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
            lds(given, masks, margins, interval=False).correlation, exact, atol=TOLERANCE
        )
        np.testing.assert_array_equal(
            lds(given[order], masks[:, order], margins, interval=False).correlation,
            lds(given, masks, margins, interval=False).correlation,
        )
    careless = masks.astype("f4") @ scores
    broken = [stats.spearmanr(x, y)[0] for x, y in zip(careless.T, margins.T, strict=True)]
    assert np.abs(broken - exact).max() > 1e-3  # the defect is real on this problem


def test_losses_need_the_sign_said():
    scores, masks, margins = problem()
    better = lds(scores, masks, margins, interval=False)
    for kind in ("spearman", "pearson", "kendall"):
        better = lds(scores, masks, margins, kind)
        loss = lds(scores, masks, -margins, kind, higher_is_better=False)
        np.testing.assert_allclose(loss.correlation, better.correlation, atol=TOLERANCE)
        np.testing.assert_allclose(loss.influence, better.influence, atol=TOLERANCE)
        assert lds(scores, masks, -margins, kind, interval=False).mean == pytest.approx(
            -better.mean
        )


def test_runs_are_averaged_before_ranking():
    scores, masks, margins = problem()
    runs = margins[:, None] + np.random.default_rng(1).standard_normal((40, 5, 12))
    np.testing.assert_array_equal(
        lds(scores, masks, runs, interval=False).correlation,
        lds(scores, masks, runs.mean(axis=1), interval=False).correlation,
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
    np.testing.assert_allclose(mapped.influence, whole.influence, atol=TOLERANCE)


def test_undefined_targets_are_counted_named_and_kept_out_of_the_mean():
    scores, masks, margins = problem()
    scores[:, 2] = 0
    margins[:, 5] = 1
    margins[3, 7] = np.nan
    scores[0, 9] = np.inf
    with pytest.warns(UndefinedCorrelationWarning, match="1 of 12 targets have NaN") as caught:
        result = lds(scores, masks, margins)
    assert caught[0].filename == __file__
    assert np.flatnonzero(np.isnan(result.correlation)).tolist() == [2, 5, 7, 9]
    words = str(caught[0].message)
    assert "scores that are not finite (target 9)" in words
    assert "scores whose sums over the subsets never vary (target 2)" in words
    assert "outputs that never vary (target 5)" in words
    assert (result.num_constant, result.num_nan_scores, result.num_nan_outputs) == (2, 1, 1)
    assert result.num_scored == 8
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
        lds(low, torch.tensor(masks), torch.tensor(margins), interval=False).correlation,
        lds(low.float().numpy(), masks, margins, interval=False).correlation,
    )


def test_shapes_that_do_not_fit_are_said_in_one_sentence():
    scores, masks, margins = problem()
    for args, words in (
        ((scores, masks[:, :-1], margins), r"masks have shape \[40, 199\]"),
        ((scores, masks[:-1], margins), "39 masks but margins of 40 subsets"),
        ((scores, masks, margins[:, :-1]), "12 targets but margins for 11"),
        ((scores[:, 0], masks, margins), "1 targets but margins for 12"),
        ((scores[None], masks, margins), r"scores must be \[N, T\]"),
        ((scores[:, :0], masks, margins[:, :0]), r"nothing in scores of shape \[200, 0\]"),
        ((scores.T, masks, margins), "transpose them, or say transposed"),
        ((scores, masks[:1], margins[:1]), "at least two rows, not 1"),
        ((scores, masks, margins[:, 0]), r"margins must be \[M, T\]"),
    ):
        with pytest.raises(ScoringError, match=words) as caught:
            lds(*args)
        assert "\n" not in str(caught.value)


def test_a_failed_retraining_is_left_out_by_name():
    scores, masks, margins = problem()
    broken = margins.copy()
    broken[17] = np.nan
    kept = np.arange(40) != 17
    with pytest.warns(RowsLeftOutWarning, match=r"1 of 40 rows have only NaN outputs \(row 17\)"):
        found = lds(scores, masks, broken)
    expected = lds(scores, masks[kept], margins[kept])
    np.testing.assert_array_equal(found.correlation, expected.correlation)
    assert found.interval == expected.interval and found.regime == expected.regime
    assert (
        found.failed_rows.tolist() == [17] and found.rows.tolist() == np.flatnonzero(kept).tolist()
    )
    runs = margins[:, None] + np.random.default_rng(1).standard_normal((40, 3, 12))
    runs[17, 2] = np.nan  # one run of three: the others are averaged
    expected = lds(scores, masks, np.nanmean(runs, axis=1), interval=False)
    np.testing.assert_array_equal(
        lds(scores, masks, runs, interval=False).correlation, expected.correlation
    )


def test_rows_that_were_fitted_are_left_out_or_labelled():
    scores, masks, margins = problem()
    fitted = np.sort(mask_digests(masks[:15]))
    with pytest.warns(RowsLeftOutWarning, match=r"15 of 40 rows were fitted \(row 0, 1, 2"):
        found = lds(scores, masks, margins, fitted=fitted)
    np.testing.assert_array_equal(
        found.correlation, lds(scores, masks[15:], margins[15:]).correlation
    )
    assert found.rows.tolist() == list(range(15, 40)) and not found.includes_fitted
    labelled = lds(scores, masks, margins, fitted=fitted, allow_fitted_rows=True)
    assert labelled.includes_fitted and "ON ROWS THAT WERE FITTED" in repr(labelled)
    with pytest.raises(ScoringError, match="fitted on 15 of these 15 rows, which leaves 0"):
        lds(scores, masks[:15], margins[:15], fitted=fitted)


def test_attributions_bring_the_rows_they_were_fitted_on():
    _, masks, margins = problem(examples=20, subsets=80)
    fit = pytest.importorskip("coarlib").fit(masks[:50], margins[:50], solver="ridge")
    with pytest.warns(RowsLeftOutWarning, match="50 of 80 rows were fitted"):
        found = lds(fit, masks, margins)
    assert found.rows.tolist() == list(range(50, 80))


def test_the_same_numbers_in_any_container_give_the_same_score():
    scores, masks, margins = problem()
    expected = lds(scores, masks, margins, interval=False).correlation
    odd_bytes = masks.view(np.uint8) * 7
    lists = [np.flatnonzero(mask).astype(float) for mask in masks]
    for same in (
        masks.astype(np.int8),
        masks.astype(np.float32),
        odd_bytes.view(bool),
        torch.tensor(masks),
        torch.tensor(masks).float().to_sparse(),
        torch.tensor(masks).float().to_sparse_csr(),
        lists,
        np.array(lists, dtype=object),
        [torch.tensor(subset) for subset in lists],
    ):
        found = lds(scores, same, margins, interval=False)
        np.testing.assert_array_equal(found.correlation, expected)
    for same in (
        margins.astype(">f8"),
        np.asfortranarray(margins),
        torch.tensor(margins, requires_grad=True),
        margins[:, None],
        np.ma.masked_array(margins, np.zeros(margins.shape, bool)),
        margins * 1e37,
        margins * 1e300,
    ):
        for kind in ("spearman", "pearson"):
            a = lds(scores, masks, same, kind, interval=False).correlation
            b = lds(scores, masks, margins, kind, interval=False).correlation
            np.testing.assert_allclose(a, b, atol=1e-12)
    turned = lds(scores.T, masks, margins, transposed=True, interval=False)
    np.testing.assert_array_equal(turned.correlation, expected)
    one = lds(scores[:, 0], masks, margins[:, 0], interval=False)
    assert one.correlation == expected[:1]


def test_values_under_a_numpy_mask_are_not_used():
    scores, masks, margins = problem()
    bad = margins.copy()
    bad[5] = -9999.0
    hidden = np.ma.masked_equal(bad, -9999.0)
    kept = np.arange(40) != 5
    with pytest.warns(RowsLeftOutWarning, match="row 5"):
        found = lds(scores, masks, hidden, interval=False)
    expected = lds(scores, masks[kept], margins[kept], interval=False)
    np.testing.assert_array_equal(found.correlation, expected.correlation)
    with pytest.raises(ScoringError, match="hides 40 booleans"):
        lds(scores, np.ma.masked_array(masks, np.eye(40, 200, dtype=bool)), margins)


def test_infinite_outputs_are_counted_and_named():
    scores, masks, margins = problem()
    margins[3, 7] = np.inf
    assert lds(scores, masks, margins, interval=False).num_infinite == 1
    with pytest.warns(UndefinedCorrelationWarning, match=r"infinite outputs \(target 7\)"):
        found = lds(scores, masks, margins, "pearson", interval=False)
    assert np.flatnonzero(np.isnan(found.correlation)).tolist() == [7]
    for bad in ([[0.5]] * 40, [[float("nan")]] * 40, [[250]] * 40):
        with pytest.raises(ScoringError, match="subset 0"):
            lds(scores, bad, margins)


def test_an_lds_carries_its_regime_and_its_share_of_the_ceiling():
    scores, masks, margins = problem(subsets=60)
    runs = margins[:, None] + 5 * np.random.default_rng(1).standard_normal((60, 4, 12))
    names = {"output": "margin", "seeds": "fresh"}
    found = lds(scores, masks, runs, **names)
    assert str(found.regime).startswith("50% kept, 60 subsets × 4 runs, fresh seeds, output margin")
    assert (
        found.regime
        == lds(scores * 2, masks.astype("i1"), runs, output="margin", seeds="fresh").regime
    )
    assert found.regime.difference(lds(scores, masks, -runs).regime).startswith("the masks and")
    assert found.ceiling.mean == noise_ceiling(runs).mean
    assert found.share_of_ceiling == found.mean / found.ceiling.mean
    assert found.share_interval.low < found.share_of_ceiling < found.share_interval.high
    assert "of the noise ceiling" in repr(found)


def test_the_share_of_the_ceiling_covers():
    rng = np.random.default_rng(3)
    shares, intervals = [], []
    for trial in range(150):
        scores, masks, margins = problem(subsets=80, targets=20, seed=trial)
        runs = margins[:, None] + 8 * rng.standard_normal((80, 2, 20))
        found = lds(scores, masks, runs, "pearson")
        shares.append(found.share_of_ceiling)
        intervals.append(found.share_interval)
    truth = np.mean(shares)
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.89 <= covered <= 0.99


def test_dattri_agrees_where_its_float32_sums_do_not_matter():
    metric = pytest.importorskip("dattri.metric", reason="dattri is not installed")
    scores, _, _ = problem()
    rng = np.random.default_rng(4)
    indices = np.stack([rng.choice(200, 100, replace=False) for _ in range(40)])
    margins = rng.standard_normal((40, 12))
    theirs = metric.lds(
        torch.tensor(scores).double(), (torch.tensor(margins), torch.tensor(indices))
    )
    mine = lds(scores, masks_from_indices(indices, 200), margins, interval=False)
    np.testing.assert_allclose(mine.correlation, theirs[0], atol=TOLERANCE)
    np.testing.assert_allclose(mine.p_value, theirs[1], atol=TOLERANCE)


def with_infinite_targets(seed=0, rows=120):
    rng = np.random.default_rng(seed)
    scores, masks = rng.normal(size=(20, 6)), rng.random((rows, 20)) < 0.5
    outputs = masks @ scores + 2 * rng.normal(size=(rows, 6))
    holed = outputs.copy()
    holed[[3, 50], 1] = np.inf
    holed[7, 2] = np.nan
    holed[[3, 50], 4] = -np.inf
    holed[:, 5] = np.inf
    return scores, masks, outputs, holed


@pytest.mark.parametrize("kind", ["spearman", "pearson", "kendall"])
def test_rows_that_are_infinite_are_left_out_for_their_target_alone(kind):
    scores, masks, outputs, holed = with_infinite_targets()
    with pytest.warns(
        InfiniteOutputsWarning, match=r"2 of 6 targets .*\(target 1, 4\), whose rows"
    ):
        found = lds(scores, masks, holed, kind, nonfinite="alone")
    for target, left_out in ((0, []), (1, [3, 50]), (2, [7]), (3, []), (4, [3, 50])):
        rows = np.setdiff1d(np.arange(120), left_out)
        alone = lds(scores[:, [target]], masks[rows], outputs[rows][:, [target]], kind)
        assert found.correlation[target] == pytest.approx(alone.mean, abs=1e-12)
    assert np.isnan(found.correlation[5]) and found.num_scored == 5
    whole = lds(scores[:, :5], masks, outputs[:, :5], kind)
    assert found.interval.low == pytest.approx(whole.interval.low, abs=0.02)
    assert found.interval.high == pytest.approx(whole.interval.high, abs=0.02)


def test_targets_that_are_infinite_are_named_and_dropped_on_request():
    scores, masks, _, holed = with_infinite_targets()
    with pytest.warns(InfiniteOutputsWarning, match=r"\(target 1, 4\), which rank as very large"):
        kept = lds(scores, masks, holed, interval=False)
    assert np.flatnonzero(np.isnan(kept.correlation)).tolist() == [2, 5]
    with pytest.warns(UndefinedCorrelationWarning, match=r"infinite outputs \(target 1, 4, 5\)"):
        dropped = lds(scores, masks, holed, nonfinite="targets", interval=False)
    assert np.flatnonzero(np.isnan(dropped.correlation)).tolist() == [1, 2, 4, 5]
    assert dropped.mean == pytest.approx(kept.correlation[[0, 3]].mean())
    with pytest.raises(ScoringError, match="nonfinite must be keep, targets, alone"):
        lds(scores, masks, holed, nonfinite="drop")


def test_infinite_runs_are_left_out_of_the_mean():
    scores, masks, outputs, _ = with_infinite_targets()
    runs = np.stack([outputs, outputs + 1], 1)
    runs[5, 0, 3] = np.inf
    found = lds(scores, masks, runs, nonfinite="alone", interval=False)
    expected = runs.mean(1)
    expected[5, 3] = runs[5, 1, 3]
    np.testing.assert_allclose(
        found.correlation, lds(scores, masks, expected, interval=False).correlation
    )


def test_arguments_of_the_drawn_intervals_are_taken_and_said_to_have_no_effect():
    drawn = problem()
    for resamples, given in ((0, False), (100, True)):
        with pytest.warns(FutureWarning, match="no effect"):
            found = lds(*drawn, resamples=resamples)
        assert (found.interval is not None) is given


def test_a_ceiling_that_is_none_is_refused():
    masks = np.random.default_rng(0).random((30, 4)) < 0.5
    with pytest.raises(ScoringError, match="ceiling is a NoiseCeiling, as noise_ceiling returns"):
        lds(np.ones((4, 2)), masks, np.ones((30, 2)), ceiling=0.8)

"""Scores against scipy, and results that survive saving."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from regression_problems import linear_rows

from coarlib.errors import CoarlibError, RegressionError
from coarlib.regression import Attributions, Moments, fit, score_arrays, score_rows
from coarlib.regression.rows import ArrayRows
from coarlib.regression.solvers import solver_of

CLOSE = 1e-6


@pytest.fixture
def noisy():
    return linear_rows(400, 20, 7, noise=0.5)


@pytest.fixture
def result(noisy):
    fitted = fit(Moments.from_arrays(noisy.masks[:300], noisy.outputs[:300]), "ridge", pooled=False)
    fitted.held_out = score_rows(fitted.predict, ArrayRows(noisy.masks[300:], noisy.outputs[300:]))
    return fitted


def test_scores_match_scipy():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(80, 6)).astype(np.float16)
    predictions = outputs + rng.normal(size=(80, 6))
    predictions[:, 5] = 1.0
    outputs[:, 4] = 2.0
    ours = score_arrays(predictions, outputs)
    for t in range(4):
        p, y = predictions[:, t], outputs[:, t].astype(float)
        assert ours.pearson[t] == pytest.approx(scipy.stats.pearsonr(p, y).statistic, abs=CLOSE)
        assert ours.spearman[t] == pytest.approx(scipy.stats.spearmanr(p, y).statistic, abs=CLOSE)
        assert ours.slope[t] == pytest.approx(scipy.stats.linregress(p, y).slope, abs=CLOSE)
        assert ours.low[t] < ours.pearson[t] < ours.high[t]
    assert np.isnan(ours.pearson[4]) and np.isnan(ours.spearman[4])
    assert ours.pearson[5] == ours.spearman[5] == 0 and np.isnan(ours.slope[5])
    assert ours.mean == pytest.approx(ours.pearson[:4].sum() / 5)
    assert ours.mean_low < ours.mean < ours.mean_high
    assert "1 targets without a score (they never vary)" in str(ours)
    assert "1 targets whose predictions never vary (they count as 0)" in str(ours)
    assert not ours.predicts_nothing


def test_predictions_that_never_vary_predict_nothing():
    outputs = np.random.default_rng(0).normal(size=(60, 3))
    silent = score_arrays(np.ones((60, 3)), outputs)
    assert silent.mean == 0 and np.isnan(silent.mean_low)
    assert "no prediction varies, so these attributions predict nothing yet" in str(silent)
    noise = score_arrays(np.random.default_rng(1).normal(size=(60, 3)), outputs)
    assert "the interval contains 0, so these attributions predict nothing yet" in repr(noise)


def test_outputs_far_from_zero_are_predicted_and_scored_as_others_are(noisy, result):
    far = noisy.outputs.astype(np.float64) + 1e9
    fitted = fit(Moments.from_arrays(noisy.masks[:300], far[:300]), "ridge", pooled=False)
    scores = score_rows(fitted.predict, ArrayRows(noisy.masks[300:], far[300:]))
    assert scores.mean == pytest.approx(result.held_out.mean, abs=CLOSE)
    assert result.predict(noisy.masks[:2]).dtype == np.float32


def test_bad_rows_are_dropped_and_too_few_refused():
    y = np.array([[1.0], [2.0], [np.nan], [4.0]])
    assert score_arrays(y, y).pearson[0] == pytest.approx(1)
    with pytest.raises(RegressionError, match="too few"):
        score_arrays(y[2:], y[2:])
    with pytest.raises(RegressionError, match="differ"):
        score_arrays(y, y[:2])


def test_saving_and_loading_keeps_everything(result, tmp_path):
    result.save(tmp_path / "out")
    for mmap in (False, True):
        again = Attributions.load(tmp_path / "out", mmap=mmap)
        assert np.array_equal(again.weight, result.weight)
        assert np.allclose(again.bias, result.bias, atol=1e-5)
        assert np.allclose(again.standard_error, result.standard_error)
        assert np.array_equal(again.held_out.pearson, result.held_out.pearson)
        assert again.held_out.mean == result.held_out.mean
        assert np.array_equal(again.mean_mask, result.mean_mask)
        assert np.array_equal(again.fitted, result.fitted) and len(again.fitted) == 300
    saved = torch.load(tmp_path / "out" / "datamodels.pt", weights_only=True)
    assert set(saved) == {"weight", "bias", "lam"}
    assert saved["weight"].shape == (20, 7) and saved["lam"].shape == (7,)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["held_out"]["num_rows"] == 100


def test_nothing_is_overwritten(result, tmp_path):
    result.save(tmp_path / "out")
    before = (tmp_path / "out" / "datamodels.pt").read_bytes()
    with pytest.raises(RegressionError, match="already holds a result"):
        result.save(tmp_path / "out")
    assert (tmp_path / "out" / "datamodels.pt").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RegressionError, match="already holds"):
        result.save(tmp_path / "file")


def test_incomplete_or_foreign_results_are_refused(result, tmp_path):
    with pytest.raises(RegressionError, match="no finished result"):
        Attributions.load(tmp_path)
    (tmp_path / "datamodels.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RegressionError, match="damaged"):
        Attributions.load(tmp_path)


def test_standardised_units_round_trip(result):
    weight, bias = result.standardised()
    again = Attributions.from_standardised(weight, bias, result.lam, result.mean_mask)
    assert np.allclose(again.weight, result.weight, atol=1e-6)
    assert np.allclose(again.bias, result.bias, atol=1e-4)


def test_views(result):
    strongest = sorted(range(20), key=lambda at: -abs(result.weight[at, 3]))[:4]
    assert result.top_features(3, 4).tolist() == strongest
    assert np.allclose(result.effect([1, 2]).value, result.weight[[1, 2]].sum(0))
    some = result.targets([4, 1])
    assert np.array_equal(some.weight, result.weight[:, [4, 1]])
    assert np.allclose(some.standard_error, result.standard_error[:, [4, 1]])
    with pytest.raises(RegressionError, match=r"\[B, 20\]"):
        result.predict(np.ones((2, 19), bool))


@pytest.mark.parametrize(
    "one", [3, np.int64(3), [3], np.array([3]), np.arange(7) == 3, slice(3, 4)]
)
def test_a_choice_of_one_target_is_attributions_that_can_be_saved(result, tmp_path, one):
    result.targets(one).save(tmp_path / "one")
    again = Attributions.load(tmp_path / "one")
    assert np.array_equal(again.weight, result.weight[:, [3]]) and again.num_targets == 1


@pytest.mark.parametrize(
    "wrong", [20, -1, [1.5], [True, False], "abc", None, [[1, 2]], [[1], [2, 3]]]
)
def test_what_names_no_feature_or_target_is_one_sentence(result, wrong):
    for use in (result.effect, result.targets):
        with pytest.raises(RegressionError, match=r"are chosen by|does not exist|is named"):
            use(wrong)
    with pytest.raises(CoarlibError):
        result.top_features(wrong)
    with pytest.raises(CoarlibError):
        result.predict([["a"] * 20])


def test_no_features_have_no_effect(result):
    assert result.effect([]).value.tolist() == [0.0] * 7
    assert np.allclose(result.effect(np.ones(20, bool)).value, result.weight.sum(0))
    assert result.targets([]).num_targets == 0


def test_calibration_slope_of_overfit_least_squares_is_below_one():
    data = linear_rows(230, 100, 20, noise=20.0)
    fitted = fit(Moments.from_arrays(data.masks[:130], data.outputs[:130]), "least_squares")
    held = score_rows(fitted.predict, ArrayRows(data.masks[130:], data.outputs[130:]))
    assert np.median(held.slope) < 0.5


@pytest.mark.parametrize("name", ["scores.npz", "rows.npz", "summary.json"])
def test_a_part_of_a_result_that_is_gone_or_changed_is_named(result, tmp_path, name):
    result.save(tmp_path / "fit")
    file = tmp_path / "fit" / name
    other = dict(np.load(file)) if name.endswith(".npz") else None
    file.unlink()
    with pytest.raises(RegressionError, match=f"{name} does not match its digest .*or is gone"):
        Attributions.load(tmp_path / "fit")
    if other is not None:
        np.savez(file, **{key: value[::-1] for key, value in other.items()})
        with pytest.raises(RegressionError, match=f"{name} does not match its digest"):
            Attributions.load(tmp_path / "fit")


@pytest.mark.parametrize("gone", [["digests.json"], ["digests.json", "summary.json"]])
def test_a_result_without_its_digests_is_damaged_and_no_lower_standard(result, tmp_path, gone):
    result.save(tmp_path / "fit")
    for name in gone:
        (tmp_path / "fit" / name).unlink()
    with pytest.raises(RegressionError, match=r"digests\.json.* gone"):
        Attributions.load(tmp_path / "fit")


def test_results_of_version_0_1_and_of_other_programs_load(result, tmp_path):
    result.save(tmp_path / "fit")
    (tmp_path / "fit" / "digests.json").unlink()
    summary = json.loads((tmp_path / "fit" / "summary.json").read_text())
    del summary["format_version"]
    (tmp_path / "fit" / "summary.json").write_text(json.dumps(summary))
    again = Attributions.load(tmp_path / "fit")
    assert np.array_equal(again.weight, result.weight) and "format_version" not in again.summary
    (tmp_path / "coar").mkdir()
    (tmp_path / "fit" / "datamodels.pt").rename(tmp_path / "coar" / "datamodels.pt")
    assert np.array_equal(Attributions.load(tmp_path / "coar").weight, result.weight)


def test_few_held_out_rows_have_no_interval_and_say_so():
    rows = linear_rows(40, 6, 2, noise=0.1)
    found = fit(ArrayRows(rows.masks, rows.outputs), held_out=10)
    assert "too few for an interval" in repr(found)


@pytest.mark.parametrize("options", [{"lam": "a"}, {"tol": "tight"}, {"lam": [1.0, "x"]}])
def test_options_of_the_wrong_kind_get_one_sentence(options):
    with pytest.raises(RegressionError, match="solver lasso cannot use"):
        solver_of("lasso", **options)


def test_outputs_whose_squares_overflow_are_refused():
    rows = linear_rows(40, 6, 2, noise=0.1)
    with pytest.raises(RegressionError, match=r"of 1 targets \(the first: 1\) overflow; scale"):
        fit(ArrayRows(rows.masks, rows.outputs * [1.0, 1e300]), solver="ridge", held_out=10)


def test_attributions_of_some_targets_can_be_saved_and_loaded(tmp_path):
    rng = np.random.default_rng(0)
    whole = Attributions(
        weight=rng.normal(size=(5, 4)).astype(np.float32),
        bias=np.zeros(4),
        lam=np.zeros(4),
        mean_mask=np.full(5, 0.9),
        gap=np.zeros(4),
        summary={"held_out": {"num_rows": 3}, "solver": "ridge"},
    )
    whole.targets([1, 3]).save(tmp_path / "some")
    loaded = Attributions.load(tmp_path / "some")
    assert (loaded.weight == whole.weight[:, [1, 3]]).all()
    assert loaded.held_out is None

"""Row sources (store, .beton, arrays), the split, and the whole fit."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from regression_problems import linear_rows, make_store

from coarlib import beton, fit
from coarlib.commands.choose_solver import solver_for
from coarlib.errors import BetonError, RegressionError, StoreError
from coarlib.masks.digests import mask_digests
from coarlib.regression import Attributions, Auto, Ridge, SharedPrior, TemperedPrior, score_arrays
from coarlib.regression import fit_and_score as experiment
from coarlib.regression.budget import Prediction
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.rows import ArrayRows, StoreRows, open_rows
from coarlib.regression.rows.blocks import read_blocks
from coarlib.regression.solvers.prior import learn_prior
from coarlib.regression.split import split_rows
from coarlib.store import Store

TRUE_EFFECT = 1e-3
QUIET = FitOptions(say=lambda _: None)


@pytest.fixture
def data():
    return linear_rows(120, 10, 6, keep=0.8, dtype=np.float32)


def test_only_completed_rows_of_a_store_are_read(data, tmp_path):
    completed = np.random.default_rng(0).random(120) < 0.5
    make_store(tmp_path / "s", data.masks, data.outputs, completed)
    source = open_rows(tmp_path / "s")
    assert np.array_equal(source.row_ids, np.flatnonzero(completed))
    got = [np.concatenate(parts) for parts in zip(*read_blocks(source, None, 2_000), strict=True)]
    assert np.array_equal(got[1], data.masks[completed])
    assert np.array_equal(got[2], data.outputs[completed])


def test_contiguous_and_scattered_reads_agree(data, tmp_path):
    source = open_rows(make_store(tmp_path / "s", data.masks, data.outputs))
    for positions in (np.arange(7, 40), np.array([3, 5, 90])):
        masks, outputs = source.read(positions)
        assert np.array_equal(masks, data.masks[positions])
        assert np.array_equal(outputs, data.outputs[positions])


def test_a_target_range_is_cut_out(data, tmp_path):
    source = open_rows(make_store(tmp_path / "s", data.masks, data.outputs), targets=slice(2, 5))
    assert source.num_targets == 3
    assert np.array_equal(source.read(np.arange(4))[1], data.outputs[:4, 2:5])


def test_outputs_of_any_shape_become_targets(data, tmp_path):
    outputs = data.outputs.reshape(120, 2, 3)
    source = StoreRows(Store.open(make_store(tmp_path / "s", data.masks, outputs)))
    assert source.num_targets == 6
    assert np.array_equal(source.read(np.arange(3))[1], data.outputs[:3])


def test_names_that_are_missing_or_ambiguous(data, tmp_path):
    path = make_store(tmp_path / "s", data.masks, data.outputs)
    with pytest.raises(StoreError, match="did you mean 'test_margins'"):
        open_rows(path, output_key="test_margin")
    np.save(path / "losses.npy", data.outputs)
    with pytest.raises(StoreError, match=r"\(losses, masks, test_margins\).*y_name"):
        open_rows(path)
    assert open_rows(path, output_key="losses").num_targets == 6
    with pytest.raises(RegressionError, match="does not exist"):
        open_rows(tmp_path / "nothing.beton")


def test_masks_must_be_masks():
    with pytest.raises(RegressionError, match="other than 0 and 1"):
        ArrayRows(np.full((3, 2), 2), np.zeros((3, 1)))
    with pytest.raises(RegressionError, match="same number of rows"):
        ArrayRows(np.ones((3, 2)), np.zeros((4, 1)))
    assert ArrayRows(np.ones((3, 2)), np.zeros(3)).num_targets == 1


def test_more_rows_than_completed_is_an_error_that_counts_them(data):
    source = ArrayRows(data.masks[:80], data.outputs[:80])
    with pytest.raises(RegressionError, match="no row of s is completed"):
        split_rows(SimpleNamespace(row_ids=(), description="s"), 0, 0)
    with pytest.raises(RegressionError, match=r"80 completed rows.*90 \+ 10 = 100"):
        split_rows(source, 90, 10)
    with pytest.raises(RegressionError, match=r"at least 1.*-1 and 2 .*has 80 completed rows"):
        split_rows(source, -1, 2)


def test_the_split_is_in_order_or_seeded(data):
    source = ArrayRows(data.masks, data.outputs)
    split = split_rows(source, 90, 20)
    assert np.array_equal(split.train, np.arange(90))
    assert np.array_equal(split.validation, np.arange(90, 110))
    a, b, c = (split_rows(source, 90, 20, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.validation, b.validation)
    assert not np.array_equal(a.validation, c.validation)
    assert np.array_equal(np.sort(np.r_[a.train, a.validation]), np.arange(110))


def test_upstreams_settings_name_a_solver():
    assert solver_for(0, 1, 10_000, 100) == "least_squares"
    assert solver_for(-1, 50, 100, 100) == "lasso"
    with pytest.warns(UserWarning, match="ridge"):
        assert solver_for(0, 1, 90, 2304) == "ridge"
    with pytest.warns(UserWarning, match="noisy"):
        assert solver_for(0, 1, 250, 100) == "least_squares"
    with pytest.raises(RegressionError, match="k must be 1"):
        solver_for(0, 5, 1000, 10)
    with pytest.raises(RegressionError, match="manual_max_lambda"):
        solver_for(-3, 1, 1000, 10)


def test_scores_are_those_of_the_training_rows_and_weights_those_of_all(data, tmp_path):
    source = ArrayRows(data.masks, data.outputs + np.random.default_rng(0).normal(size=(120, 6)))
    lines = []
    result = fit_and_score(
        source,
        split_rows(source, 90, 30),
        "least_squares",
        FitOptions(say=lines.append),
    )
    assert result.summary["num_rows"] == 120
    assert result.held_out.num_rows == 30
    assert result.held_out.mean_low < result.held_out.mean < result.held_out.mean_high
    assert any("held-out correlation" in line for line in lines)
    assert any("all 120 rows" in line for line in lines)
    assert np.array_equal(result.fitted, np.sort(mask_digests(data.masks)))
    result.save(tmp_path / "out")
    split = Attributions.load(tmp_path / "out").split.positions(source)
    assert split.train.tolist() == list(range(90))
    assert split.validation.tolist() == list(range(90, 120))


def test_no_held_out_rows(data):
    source = ArrayRows(data.masks, data.outputs)
    result = fit_and_score(source, split_rows(source, 120, 0), "least_squares", QUIET)
    assert result.held_out is None
    assert np.abs(result.weight - data.weight).max() < TRUE_EFFECT


def test_without_an_intercept_the_mean_is_left_out(data):
    source = ArrayRows(data.masks, data.outputs)
    split = split_rows(source, 100, 20)
    with_bias, without = (
        fit_and_score(source, split, "ridge", FitOptions(use_bias=use, say=lambda _: None))
        for use in (True, False)
    )
    assert np.allclose(with_bias.bias - without.bias, data.outputs.mean(0), atol=1e-4)


def test_a_beton_reads_like_the_store_it_was_written_from(data, tmp_path):
    fields = {
        "mask": beton.NDArray(np.dtype(bool), (10,)),
        "targets": beton.NDArray(np.dtype(np.float32), (6,)),
        "idx": beton.Int(),
    }
    arrays = {"mask": data.masks, "targets": data.outputs, "idx": np.arange(120)}
    beton.write(tmp_path / "x.beton", fields, arrays, quiet=True)
    source = open_rows(tmp_path / "x.beton", targets=slice(1, 4))
    assert (source.num_features, source.num_targets, len(source.row_ids)) == (10, 3, 120)
    for positions in (np.arange(5, 60), np.array([2, 3, 77])):
        masks, outputs = source.read(positions)
        assert np.array_equal(masks, data.masks[positions])
        assert np.array_equal(outputs, data.outputs[positions, 1:4])
    beton.write(tmp_path / "y.beton", {"idx": beton.Int()}, {"idx": np.arange(3)}, quiet=True)
    with pytest.raises(BetonError, match="mask or targets"):
        open_rows(tmp_path / "y.beton")


def sparse_source(rows, keep_rows=True):
    data = linear_rows(rows, 60, 30, keep=0.8)
    data.weight[6:] = 0
    signal = data.masks @ data.weight
    noise = np.random.default_rng(1).normal(size=signal.shape)
    return ArrayRows(data.masks, signal + 2 * noise)


def test_auto_keeps_what_predicts_the_held_out_rows_best():
    source, lines = sparse_source(260), []
    result = fit_and_score(
        source, split_rows(source, 60, 200), "auto", FitOptions(say=lines.append)
    )
    scores = result.summary["candidates"]
    assert set(scores) == {"ridge", "shared_prior", "tempered_prior", "lasso"}
    assert result.summary["solver"] == max(scores, key=scores.get)
    assert scores[result.summary["solver"]] > scores["ridge"] + 0.05
    assert result.held_out.mean == pytest.approx(max(scores.values()), abs=0.05)
    used = 100 if result.summary["solver"] == "lasso" else 200
    assert result.held_out.num_rows == used
    assert any("chosen on the held-out rows" in line for line in lines)
    with pytest.raises(RegressionError, match="hold out at least 4"):
        fit_and_score(source, split_rows(source, 60, 0), "auto", FitOptions(say=print))


@pytest.mark.parametrize("seed", range(3))
def test_auto_judges_all_candidates_on_the_same_targets(seed):
    """Two targets with strong effects, 18 for which the lasso predicts a constant."""
    rng = np.random.default_rng(seed)
    masks = rng.random((1360, 200)) < 0.9
    weight = np.zeros((200, 20))
    weight[:3, :2], weight[:, 2:] = 1.5, 0.03 * rng.normal(size=(200, 18))
    outputs = (masks @ weight + rng.normal(size=(1360, 20))).astype(np.float32)
    source = ArrayRows(masks, outputs)
    found = fit_and_score(source, split_rows(source, 300, 60), "auto", QUIET)
    assert np.isfinite(found.held_out.pearson).all()
    predicted, true = found.predict(masks[360:]), outputs[360:]
    fresh = score_arrays(predicted, true)
    ours = [
        0.0 if p.std() == 0 else np.corrcoef(p, y)[0, 1]
        for p, y in zip(predicted.T, true.T, strict=True)
    ]
    assert fresh.mean == pytest.approx(np.mean(ours), abs=1e-6)
    assert abs(fresh.mean - found.held_out.mean) < 0.15


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_auto_learns_the_shared_prior_once_with_unchanged_results(form, monkeypatch):
    source, learnt = sparse_source(90), []
    split = split_rows(source, 50, 40)
    monkeypatch.setattr(experiment, "choose_form", lambda *_: Prediction(form, 0, 0))
    module = importlib.import_module("coarlib.regression.solvers.shared_prior")

    def counted(*args, **options):
        learnt.append(learn_prior(*args, **options))
        return learnt[-1]

    monkeypatch.setattr(module, "learn_prior", counted)
    auto = Auto(candidates=(Ridge(), SharedPrior(), TemperedPrior()))
    result = fit_and_score(source, split, auto, QUIET)
    final = int(result.summary["solver"] != "ridge")
    assert len(learnt) == 1 + final
    for solver in auto.candidates:
        alone = fit_and_score(source, split, solver, QUIET)
        if solver.name == result.summary["solver"]:
            assert np.array_equal(alone.weight, result.weight)
            assert alone.summary["errors"] == result.summary["errors"]


def test_the_final_lasso_is_fitted_on_all_rows_at_the_chosen_lambda():
    source = sparse_source(260)
    result = fit_and_score(source, split_rows(source, 160, 100), "lasso", QUIET)
    assert result.summary["num_rows"] == 260
    assert result.path["lam"].shape == (30, 100)
    assert all(result.lam[t] in result.path["lam"][t] for t in range(30))
    assert (result.gap <= 1e-6).all()


@pytest.mark.parametrize(
    "solver", [Ridge(), SharedPrior(), Auto(candidates=(Ridge(), SharedPrior()))]
)
def test_the_dual_form_gives_the_same_fit(solver, monkeypatch):
    source = sparse_source(80)
    split = split_rows(source, 50, 30)
    a = fit_and_score(source, split, solver, QUIET)
    monkeypatch.setattr(experiment, "choose_form", lambda *_: Prediction("dual", 0, 0))
    b = fit_and_score(source, split, solver, QUIET)
    assert np.allclose(a.weight, b.weight, atol=2e-3)
    assert a.held_out.mean == pytest.approx(b.held_out.mean, abs=1e-3)


def test_few_rows_of_many_features_take_the_form_without_a_matrix_over_features():
    data = linear_rows(100, 2432, 3, keep=0.9, noise=1.0)
    source, lines = ArrayRows(data.masks, data.outputs), []
    split = split_rows(source, 80, 20)
    found = fit_and_score(source, split, "ridge", FitOptions(say=lines.append))
    assert "ridge, dual form" in lines[0] and found.weight.shape == (2432, 3)
    lines.clear()
    split = split_rows(source, 80, 20)
    found = fit_and_score(source, split, "auto", FitOptions(say=lines.append))
    assert "primal and dual form" in lines[0] and "lasso" in found.summary["candidates"]


def test_the_learning_curve_is_shown_where_there_are_rows_for_it():
    source, lines = sparse_source(500), []
    split = split_rows(source, 400, 100)
    result = fit_and_score(source, split, "ridge", FitOptions(say=lines.append))
    assert any("doubling the rows to 800" in line for line in lines)
    assert result.summary["learning_curve"]["rows"][-1] == 400
    quiet = fit_and_score(source, split, "ridge", FitOptions(with_curve=False, say=lambda _: None))
    assert "learning_curve" not in quiet.summary


def test_folds_choose_the_ridge():
    source, lines = sparse_source(200), []
    split = split_rows(source, 150, 50)
    result = fit_and_score(source, split, Ridge(folds=5), FitOptions(say=lines.append))
    assert any("λ by folds" in line for line in lines)
    assert result.lam[0] > 0 and (result.lam == result.lam[0]).all()
    with pytest.raises(RegressionError, match="at least 2 folds"):
        Ridge(folds=1)


def test_arrays_are_what_they_mean_whatever_holds_them():
    rng = np.random.default_rng(0)
    masks, outputs = rng.random((30, 6)) < 0.5, rng.standard_normal((30, 3))
    hidden = np.ma.masked_array(outputs, np.zeros((30, 3), bool))
    hidden[4] = np.ma.masked
    read = ArrayRows((masks.view(np.uint8) * 3).view(bool), hidden).read(np.arange(30))
    assert np.array_equal(read[0].view(np.uint8), masks.view(np.uint8))
    assert np.isnan(read[1][4]).all() and not np.isnan(np.delete(read[1], 4, axis=0)).any()
    runs = np.stack([outputs - 1, outputs + 1], axis=1)
    assert np.allclose(ArrayRows(masks, runs).read(np.arange(30))[1], outputs)


@pytest.mark.parametrize("solver", ["auto", "ridge", "lasso", "least_squares", "bayes"])
def test_no_target_is_nothing_to_fit(solver):
    masks = np.random.default_rng(0).random((60, 5)) < 0.5
    with pytest.raises(RegressionError, match="has no targets"):
        fit(masks, np.zeros((60, 0)), solver, device="cpu")

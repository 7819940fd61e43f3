import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarlib.errors import ReportError
from coarlib.regression import ArrayRows, Moments, fit
from coarlib.regression.attributions import Attributions
from coarlib.regression.split import Split, split_rows
from coarlib.report.health import examine
from coarlib.report.learning import look_ahead, looked_at, split_of
from coarlib.report.notes import FeatureNotes, Notes, as_pictures, read_groups, read_notes
from coarlib.report.payload import STEPS, pack_scaled, spread_out
from coarlib.report.records import read_evaluation, read_lds, read_steps
from coarlib.report.strongest import layer_means, nearest, strongest

RNG = np.random.default_rng(0)
FLOAT32 = 1e-5


def attributions(weight, **more):
    targets = weight.shape[1]
    return Attributions(
        weight.astype(np.float32),
        np.zeros(targets),
        np.zeros(targets),
        np.full(len(weight), 0.5),
        np.zeros(targets),
        **more,
    )


def test_strongest_features_are_those_of_a_full_sort():
    weight = RNG.normal(size=(30, 9))
    weight[:, 4] = np.abs(weight[:, 4])  # no negative ones
    weight[:, 7] = 0
    found = strongest(attributions(weight, error_feature=np.arange(30.0)), 5)
    for target in range(9):
        order = np.argsort(-weight[:, target])
        best = [j for j in order[:5] if weight[j, target] > 0]
        worst = [j for j in order[::-1][:5] if weight[j, target] < 0]
        up, down = found.features[target, :5], found.features[target, 5:]
        assert up[up >= 0].tolist() == best and down[down >= 0].tolist() == worst
    shown = found.features >= 0
    np.testing.assert_allclose(found.errors[shown], found.features[shown], rtol=FLOAT32)
    assert (found.weights[~shown] == 0).all()


def test_fewer_features_than_asked_for():
    found = strongest(attributions(np.array([[1.0], [-2.0]])), 8)
    assert found.features.tolist() == [[0, -1, 1, -1]]


def test_nearest_targets_are_those_of_all_cosines():
    weight = RNG.normal(size=(20, 40))
    unit = weight / np.linalg.norm(weight, axis=0)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, -np.inf)
    found = nearest(weight, 3)
    np.testing.assert_array_equal(found.targets, np.argsort(-cosine, axis=1)[:, :3])
    np.testing.assert_allclose(found.cosines, -np.sort(-cosine, axis=1)[:, :3], atol=FLOAT32)
    assert nearest(weight[:, :1], 3).targets.shape == (1, 0)


def test_layer_means_are_means():
    weight = RNG.normal(size=(6, 5))
    group, column = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 0, 1])
    found = layer_means(weight, group, column)
    for layer in range(2):
        for kind in range(2):
            part = np.abs(weight[np.ix_(group == layer, column == kind)])
            assert found[layer, kind] == pytest.approx(part.mean(), rel=FLOAT32)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_packed_numbers_come_back(values):
    packed = pack_scaled(np.array([values, values[::-1]]))
    steps = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(2, -1)
    scale = np.frombuffer(base64.b64decode(packed["scale"]["data"]), "<f4")
    largest = np.abs(values).max()
    error = np.abs(steps * scale[:, None].astype(float) - [values, values[::-1]]).max()
    assert error <= largest * (0.5 / STEPS + 1e-6) + 1e-32


def test_nan_is_packed_as_the_smallest_step():
    packed = pack_scaled(np.array([1.0, np.nan]))
    steps = np.frombuffer(base64.b64decode(packed["data"]), "<i2")
    assert steps.tolist() == [STEPS, -STEPS - 1]


@given(st.integers(1, 300))
def test_spread_out_is_a_permutation_with_extremes_first(count):
    values = np.random.default_rng(count).normal(size=count)
    found = spread_out(values, count)
    assert sorted(found.tolist()) == list(range(count))
    assert found[0] == values.argmin()
    if count > 1:
        assert found[1] == values.argmax()


def test_health_counts_what_was_put_in():
    masks = RNG.random((50, 6)) < 0.7
    masks[:, 2] = True
    outputs = RNG.normal(300, 1, size=(50, 4))
    outputs[:, 1] = 7
    outputs[4, 3] = np.inf
    found = examine(ArrayRows(masks, outputs))
    assert found.num_complete == found.num_sampled == 50
    np.testing.assert_allclose(found.kept_share, masks.mean(0))
    assert found.constant.tolist() == [False, True, False, False]
    assert found.has_nonfinite.tolist() == [False, False, False, True]
    np.testing.assert_allclose(found.mean[0], outputs[:, 0].mean())
    np.testing.assert_allclose(found.deviation[0], outputs[:, 0].std(), rtol=1e-9)
    assert found.deviation[1] == 0


def test_what_is_shown_is_what_the_fit_on_the_training_rows_predicts():
    masks = RNG.random((400, 8)) < 0.6
    outputs = masks @ RNG.normal(size=(8, 5)) + RNG.normal(size=(400, 5))
    source = ArrayRows(masks, outputs)
    targets = np.array([1, 3])
    found = look_ahead(source, Split(np.arange(320), np.arange(320, 400)), targets)
    alone = fit(Moments.from_arrays(masks[:320], outputs[:320, targets]), "ridge")
    np.testing.assert_allclose(found.predicted, alone.predict(masks[320:]), rtol=FLOAT32)
    r = [np.corrcoef(found.predicted[:, t], outputs[320:, j])[0, 1] for t, j in enumerate(targets)]
    np.testing.assert_allclose(found.scores.pearson, r, atol=FLOAT32)
    assert found.num_rows == 320 and found.curve.rows[-1] == 320
    assert found.curve.correlation[-1] == pytest.approx(found.scores.mean, abs=FLOAT32)
    assert found.doubled >= found.scores.mean - 0.05


@pytest.mark.parametrize("seed", [None, 3])
def test_the_split_is_the_one_of_the_fit(seed):
    source = ArrayRows(RNG.random((100, 3)) < 0.5, RNG.normal(size=(100, 2)))
    expected = split_rows(source, 60, 20, seed)
    found = attributions(np.zeros((3, 2)), split=expected.row_ids(source))
    split = split_of(found, source)
    assert split.train.tolist() == expected.train.tolist()
    assert split.validation.tolist() == expected.validation.tolist()
    found.split = Split(found.split.train, np.empty(0, np.int64))
    assert len(split_of(found, source).validation) == 40
    assert split_of(found, ArrayRows(source.masks[:50], source.outputs[:50])) is None


def test_the_curve_is_that_of_the_solver_of_the_fit():
    masks = RNG.random((300, 8)) < 0.6
    outputs = masks @ RNG.normal(size=(8, 5)) + RNG.normal(size=(300, 5))
    source, targets = ArrayRows(masks, outputs), np.array([1, 3])
    same = {"conjugate_gradients": "least_squares", "saga": "lasso"}  # what has their solution
    for solver in ("least_squares", "lasso", "tempered_prior", *same):
        options = {"lam": 0.01} if solver == "saga" else {}
        whole = fit((masks, outputs), solver, held_out=60, **options)
        found = look_ahead(source, split_of(whole, source), targets, whole)
        assert found.curve.solver == same.get(solver, solver)
        assert found.curve.correlation[-1] == pytest.approx(found.scores.mean, abs=FLOAT32)
        if solver != "lasso":  # which chooses λ on some of the held-out rows
            held = whole.held_out.pearson[targets]
            np.testing.assert_allclose(found.scores.pearson, held, atol=2e-3)
    whole.summary["solver"] = "of another program"
    with pytest.raises(ReportError, match=r"own solver .* is not known"):
        look_ahead(source, split_of(whole, source), targets, whole)


def test_the_targets_that_are_looked_at_are_all_or_evenly_spread():
    found = attributions(np.zeros((2, 3000)))
    assert looked_at(found, 900).tolist() == list(range(900))
    r = RNG.normal(size=3000)
    found.held_out = SimpleNamespace(pearson=r)
    chosen = looked_at(found, 3000)
    assert len(chosen) == 1024 and (np.diff(chosen) > 0).all()
    np.testing.assert_allclose(np.quantile(r[chosen], [0.1, 0.5, 0.9]),
                               np.quantile(r, [0.1, 0.5, 0.9]), atol=0.01)  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_share_that_is_not_additive_is_found(share):
    masks = RNG.random((3000, 12)) < 0.5
    signs = 2.0 * masks - 1
    additive = signs @ RNG.normal(size=(12, 6))
    pairs = signs[:, :6] * signs[:, 6:]  # uncorrelated with every single feature
    outputs = additive / additive.std(0) * np.sqrt(1 - share) + pairs * np.sqrt(share)
    found = look_ahead(
        ArrayRows(masks, outputs), Split(np.arange(2500), np.arange(2500, 3000)), np.arange(6)
    )
    assert found.not_additive == pytest.approx(share, abs=0.06)


def test_too_many_features_for_a_curve_are_refused_with_the_reason():
    source = ArrayRows(np.ones((50, 3000), bool), np.ones((50, 2)))
    with pytest.raises(ReportError, match="3,000 features"):
        look_ahead(source, Split(np.arange(40), np.arange(40, 50)), np.arange(2))


def test_images_of_every_layout_become_pictures():
    chw = RNG.normal(size=(4, 3, 6, 5)).astype(np.float32)
    assert as_pictures(chw).shape == (4, 6, 5, 3) and as_pictures(chw).dtype == np.uint8
    assert as_pictures(chw[:, :1]).shape == (4, 6, 5)
    whole = RNG.integers(0, 255, (4, 6, 5, 3), dtype=np.uint8)
    assert as_pictures(whole) is whole
    with pytest.raises(ReportError, match="no set of images"):
        as_pictures(np.zeros((4, 7)))


def test_features_have_names():
    notes = FeatureNotes([("conv", 3), ("fc", 2)])
    assert [notes.name(j) for j in (0, 2, 3)] == ["conv[0]", "conv[2]", "fc[0]"]
    assert FeatureNotes(notes=Notes(labels=["cat", "dog"])).name(1) == "example 1 (dog)"
    assert FeatureNotes().name(1) == "feature 1"
    with pytest.raises(ReportError, match="name 5 components"):
        notes.check(6)


def test_groups_of_several_kinds_in_one_module_have_names_of_their_own():
    layer = {"module": "fc", "parameter": "weight", "units": 2}
    kinds = ("linear_row", "linear_input")
    table = [{**layer, "kind": kind} for kind in kinds] + [{**layer, "module": "0", "kind": "x"}]
    notes = FeatureNotes.of_components(table)
    assert [notes.name(j) for j in (1, 2, 4)] == ["fc linear_row[1]", "fc linear_input[0]", "0[0]"]


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("a.json", "{", read_notes),
        ("a.json", '{"other": 1}', read_notes),
        ("a.npz", "no zip", read_notes),
        ("a.json", "[1]", read_groups),
        ("a.json", "{}", read_lds),
        ("a.json", '{"lines": 3}', read_evaluation),
        ("a.json", '{"lines": []}', read_evaluation),
        ("a.json", "{}", read_steps),
    ],
)
def test_foreign_files_are_one_clear_error(tmp_path, name, text, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=r"a\.|explanation"):
        read(tmp_path / name)


def test_texts_are_read_from_json(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["one", "two"]))
    assert read_notes(tmp_path / "a.json").texts == ["one", "two"]

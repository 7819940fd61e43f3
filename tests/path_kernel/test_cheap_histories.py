"""Thinned, windowed, partial and rounded histories: exact replay, and what is left out reported."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo.recorded_runs import Run, tiny_data, tiny_model

from coarlib.errors import HistoryError
from coarlib.history import History, open_run
from coarlib.path_kernel import explain
from coarlib.store import RowWriter, Store, initialize

ADAM = Run("AdamW", {"lr": 0.05, "weight_decay": 0.2}, clip=0.4, schedule=True)
SGD = Run("SGD", {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.05, "nesterov": True})


def decompose(run, path, model, **options):
    train, test = tiny_data()
    options = {"by": ["sample", "step"], "quiet": True, **options}
    return explain(open_run(path, model, run.loss(), train), *test, **options)


@pytest.mark.parametrize("run", [ADAM, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("every", [2, 4, 10])
def test_replay_gives_the_very_same_decomposition(tmp_path, run, every):
    model = run.record(tmp_path / "full")
    run.record(tmp_path / "thin", every=every)
    full, thin = (decompose(run, tmp_path / name, model) for name in ("full", "thin"))
    for name in full.arrays:
        np.testing.assert_array_equal(full[name], thin[name], err_msg=name)
    sizes = [History(tmp_path / name).settings.num_bytes() for name in ("full", "thin")]
    if every > 2:
        assert sizes[1] < sizes[0]


def test_replay_that_leaves_the_path_is_an_error_that_names_the_step(tmp_path):
    model = ADAM.record(tmp_path / "h", every=3)
    lied = Run("AdamW", {"lr": 0.05}, function=lambda o, t: ADAM.function(1.5 * o, t))
    with pytest.raises(HistoryError, match=r"replaying update \d does not"):
        decompose(lied, tmp_path / "h", model)


def test_replay_tolerance_is_measured_at_the_next_kept_state(tmp_path):
    train, test = tiny_data()
    model = ADAM.record(tmp_path / "h", every=3)
    lied = Run("AdamW", {"lr": 0.05}, function=lambda o, t: ADAM.function(1.00001 * o, t))
    close = open_run(tmp_path / "h", model, lied.loss(), train, replay_tolerance=1e-3)
    assert explain(close, *test, quiet=True).checks()["total"] < 1e-3
    with pytest.raises(HistoryError, match="more than the replay tolerance"):
        far = open_run(tmp_path / "h", model, lied.loss(), train, replay_tolerance=1e-12)
        explain(far, *test, quiet=True)


@pytest.mark.parametrize("run", [ADAM, SGD], ids=["adamw", "sgd"])
def test_a_window_explains_its_part_and_reports_the_rest(tmp_path, run):
    model = run.record(tmp_path / "full")
    run.record(tmp_path / "part", window=(2, 5))
    full = decompose(run, tmp_path / "full", model, count_at="acted")
    part = decompose(run, tmp_path / "part", model, count_at="acted")
    inside = [full.by("step", source=source)[..., 2:5] for source in ("data", "weight_decay")]
    sources = ("data", "weight_decay", "prior_momentum")  # of SGD, it holds earlier decay too
    mine = [part.by("step", source=source) for source in sources]
    np.testing.assert_allclose(sum(mine), sum(inside), rtol=0, atol=1e-9)
    if run is ADAM:
        np.testing.assert_allclose(mine[1], inside[1], rtol=0, atol=1e-9)
    assert np.abs(part["prior_momentum"]).max() > 1e-4
    assert part.checks()["total"] < 1e-5
    taken = decompose(run, tmp_path / "part", model)
    np.testing.assert_allclose(taken["prior_momentum"], part["prior_momentum"], atol=1e-9)
    for name in ("initial", "final"):
        np.testing.assert_allclose(part[name], full[name], rtol=0, atol=1e-12)
    assert np.abs(part["outside"]).max() > 1e-2
    assert part.about["initial_is"] == "the model before training"


def to_version_1(path):
    """Rewrite a window as coarlib 0.1 recorded it: both ends of the run behind the states."""
    states, ends = Store.open(path / "states"), Store.open(path / "ends")
    count, rows = states.num_models, states.completed_rows()
    initialize(path / "old", replace(states.spec, num_models=count + 2))
    with RowWriter(Store.open(path / "old")) as writer:
        writer.write(rows, {key: states.array(key)[rows] for key in states.spec.schema})
        both = {
            key: np.array(ends.array(key))
            if key in ends.spec.schema
            else np.zeros((2, *array.shape), array.dtype)
            for key, array in states.spec.schema.items()
        }
        writer.write(np.arange(count, count + 2), both)
    shutil.rmtree(path / "states")
    shutil.rmtree(path / "ends")
    (path / "old").rename(path / "states")
    (path / "commit.json").unlink()
    content = json.loads((path / "history.json").read_text())
    (path / "history.json").write_text(json.dumps({**content, "format_version": 1}))


@pytest.mark.parametrize("run", [ADAM, SGD], ids=["adamw", "sgd"])
def test_windows_of_version_0_1_are_explained_as_they_were(tmp_path, run):
    model = run.record(tmp_path / "h", window=(2, 5))
    wanted = decompose(run, tmp_path / "h", model)
    to_version_1(tmp_path / "h")
    found = decompose(run, tmp_path / "h", model)
    for name, values in wanted.arrays.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert found.about["initial_is"] == "the model before training"


def test_a_parameter_subset_reports_the_movement_of_the_others(tmp_path):
    model = ADAM.record(tmp_path / "full")
    ADAM.record(tmp_path / "part", track=["2.*"])
    full, part = (
        decompose(ADAM, tmp_path / name, model, by=["tensor"]) for name in ("full", "part")
    )
    np.testing.assert_allclose(part.by("tensor"), full.by("tensor")[..., 2:], atol=1e-7)
    assert part.about["tensors"] == ["2.weight", "2.bias"]
    assert np.abs(part["untracked"]).max() > 1e-3
    assert part.checks()["sum_of_parts"] < 1e-12
    with pytest.raises(HistoryError, match=r"no trained parameter is called 3\.\*"):
        ADAM.record(tmp_path / "none", track=["3.*"])


def test_bfloat16_halves_the_bytes_and_its_effect_is_measured(tmp_path):
    model = ADAM.record(tmp_path / "full", model=tiny_model(dtype=torch.float64))
    ADAM.record(tmp_path / "half", storage="bfloat16")
    half = decompose(ADAM, tmp_path / "half", model)
    effect = half.checks()
    outputs = model(tiny_data()[1][0]).detach().numpy()
    np.testing.assert_allclose(half["final"], outputs, rtol=0, atol=1e-12)
    assert 1e-6 < effect["rounding"] < 0.1
    assert 1e-6 < effect["update_residual"] < 0.5  # updates of rounded parameters
    assert effect["sum_of_parts"] < 1e-12
    sizes = [History(tmp_path / name).settings.state_rows().row_bytes for name in ("full", "half")]
    assert sizes[1] < sizes[0] / 3.5
    with pytest.raises(HistoryError, match="own dtype"):
        ADAM.record(tmp_path / "both", storage="bfloat16", every=2)


def test_float32_history_can_be_explained_in_float64(tmp_path):
    data = tiny_data(torch.float32)
    model = ADAM.record(tmp_path / "h", model=tiny_model(dtype=torch.float32), data=data[0])
    wide = open_run(tmp_path / "h", model, ADAM.loss(), data[0], dtype=torch.float64)
    assert explain(wide, *data[1], quiet=True).checks()["total"] < 2e-5

"""A fit's plan: its stages are commands that exist, its predictions those of the fit itself."""

import shlex

import numpy as np
import pytest

from coarlib.cluster.fit_plan import plan_fit
from coarlib.commands.__main__ import main as coar
from coarlib.regression.attributions import Attributions
from coarlib.regression.budget import predict
from coarlib.regression.solvers import LeastSquares, Size


@pytest.fixture
def steady(monkeypatch):
    """A machine of known speed, so that times can be compared."""
    monkeypatch.setattr("coarlib.regression.budget._speed", lambda dtype: 1e10)


@pytest.fixture
def rows(tmp_path):
    """110 rows of a linear truth, as upstream's arrays."""
    (tmp_path / "rows").mkdir()
    rng = np.random.default_rng(0)
    masks = rng.random((110, 12)) < 0.9
    np.save(tmp_path / "rows" / "masks.npy", masks)
    outputs = (masks @ rng.normal(size=(12, 5)) + 3).astype(np.float32)
    np.save(tmp_path / "rows" / "test_margins.npy", outputs)
    np.save(tmp_path / "rows" / "_completed.npy", np.ones(110, bool))
    return tmp_path / "rows"


@pytest.mark.usefixtures("steady")
def test_many_rows_and_targets_are_cut_and_the_factorisation_is_not():
    size = Size(90_000, 10_000, 4_000, 20_000)
    ways = {way.name: way for way in plan_fit(LeastSquares(), size, 16, "STORE")}
    alone = predict(LeastSquares(), size)
    assert ways["alone"].seconds == alone.seconds
    for name in ("rows by shares, one factorisation", "targets by blocks"):
        assert alone.seconds / 16 < ways[name].seconds < alone.seconds
    sums, join, solve = ways["rows by shares, one factorisation"].stages
    assert (sums.jobs, join.jobs, solve.jobs) == (16, 1, 1)
    assert ways["targets by blocks"].stages[0].peak_bytes < alone.peak_bytes


@pytest.mark.usefixtures("steady")
def test_what_cannot_be_cut_by_rows_is_not():
    size = Size(500, 100, 40_000, 3, form="dual")
    ways = plan_fit(LeastSquares(), size, 16, "STORE")
    assert {way.name for way in ways} == {"alone", "targets by blocks"}
    assert max(stage.jobs for way in ways for stage in way.stages) == 3


def test_the_commands_of_a_plan_make_the_fit(rows, capsys, tmp_path):
    words = [str(rows), "--out", str(tmp_path / "out"), "--solver", "least_squares"]
    coar(["run_regression", *words, "--plan", "2"])
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("coar ")]
    found = {}
    for name in ("moments", "fit_targets"):
        made = tmp_path / name
        mine = [line for line in lines if line.split()[1] == name]
        assert len(mine) == 2
        for line in [mine[0], mine[0], mine[1]]:
            index = "1" if line is mine[0] and (tmp_path / f"{name}.begun").exists() else "0"
            (tmp_path / f"{name}.begun").touch()
            line = line.replace(" I ", f" {index} ").replace(str(tmp_path / "out"), str(made))
            coar(shlex.split(line)[1:])
        if name == "moments":
            line = next(line for line in lines if "run_regression" in line)
            coar(shlex.split(line.replace(str(tmp_path / "out"), str(made)))[1:])
        found[name] = Attributions.load(made).weight
    np.testing.assert_allclose(found["moments"], found["fit_targets"], atol=1e-5)

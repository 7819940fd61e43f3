"""The whole pipeline, by its commands, on a network whose true attributions are known."""

import json

import numpy as np
import pytest
import torch
from paths import ROOT
from zoo.golden_task import EXAMPLES, UNITS, true_attributions

from coarlib.store import Store

TASK = ROOT / "tests" / "zoo" / "golden_task.py"
RECOVERED_TO = 1e-3  # float32 margins; least squares on a linear truth is exact but for rounding
ROWS = 200


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Run the seed's steps; returns the directory they worked in."""
    import subprocess
    import sys

    directory = tmp_path_factory.mktemp("golden")
    spec = {
        "num_models": ROWS,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [UNITS]},
            "test_margins": {"dtype": "float32", "shape": [EXAMPLES]},
        },
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    config = (
        "data: {num_train: 160, num_val: 20}\ncfg: {k: 1, batch_size: 20, manual_max_lambda: 0}"
    )
    (directory / "config.yaml").write_text(config)
    store, beton = directory / "store", directory / "store" / "component_datasets.beton"
    steps = [
        ("initialize_store", "--logging.logdir", store, "--logging.spec", directory / "spec.json"),
        (
            *("make_dataset", "--expt.base_dir", store, "--expt.task", TASK),
            *("--expt.subsample_prob", 0.9, "--expt.start_index", 0, "--expt.end_index", ROWS),
        ),
        (
            *("write_dataset", "--cfg.data_dir", store, "--cfg.out_path", beton),
            *("--cfg.x_name", "masks", "--cfg.y_name", "test_margins"),
        ),
        *(
            (
                *("run_regression", "--config", directory / "config.yaml"),
                *("--data.data_path", source, "--cfg.out_dir", directory / name),
            )
            for source, name in ((beton, "from_beton"), (store, "from_store"))
        ),
        (
            *("score_lds", "--data.store", store, "--data.scores", directory / "from_beton"),
            *("--data.rows", "180:200", "--cfg.out", directory / "lds.json"),
            "--allow_fitted_rows",  # few components: masks of these rows are among the fitted ones
        ),
    ]
    for module, *arguments in steps:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT / "estimate",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (module, done.stdout, done.stderr)
    return directory


@pytest.mark.parametrize("source", ["from_beton", "from_store"])
def test_true_attributions_are_recovered_in_raw_units(pipeline, source):
    found = torch.load(pipeline / source / "datamodels.pt", weights_only=True)
    assert np.abs(found["weight"].numpy() - true_attributions()).max() < RECOVERED_TO
    assert found["bias"].shape == found["lam"].shape == (EXAMPLES,)


def test_predictions_of_every_row_are_right(pipeline):
    store = Store.open(pipeline / "store")
    found = torch.load(pipeline / "from_store" / "datamodels.pt", weights_only=True)
    predicted = store.array("masks") @ found["weight"].numpy() + found["bias"].numpy()
    assert np.abs(predicted - store.array("test_margins")).max() < RECOVERED_TO


def test_the_score_of_a_perfect_attribution_is_one(pipeline):
    result = json.loads((pipeline / "lds.json").read_text())
    assert result["mean"] == pytest.approx(1.0, abs=1e-3)


def test_half_filled_stores_are_never_padded_with_zero_rows(pipeline, tmp_path, command):
    """Upstream's scripts fit unfinished rows, all zero; ours must not even with gaps."""
    import shutil

    from coarlib.store import RowWriter

    shutil.copytree(pipeline / "store", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    with RowWriter(store) as writer:
        writer.withdraw(np.arange(10, 40))
    fit = command(
        "coarlib.commands.fit.run_regression",
        *("--config", pipeline / "config.yaml", "--data.data_path", store.path),
        *("--cfg.out_dir", tmp_path / "out"),
    )
    assert fit.returncode == 2
    assert "170" in fit.stderr
    smaller = command(
        "coarlib.commands.fit.run_regression",
        *("--config", pipeline / "config.yaml", "--data.data_path", store.path),
        *("--data.num_train", 150, "--data.num_val", 20, "--cfg.out_dir", tmp_path / "out"),
    )
    assert smaller.returncode == 0, smaller.stderr
    found = torch.load(tmp_path / "out" / "datamodels.pt", weights_only=True)
    assert np.abs(found["weight"].numpy() - true_attributions()).max() < RECOVERED_TO

"""The same rows and the same attributions on a GPU as on the CPU, through the commands."""

import numpy as np
import pytest
import torch
from paths import ROOT

from coarlib.commands.fit import run_regression
from coarlib.commands.store import initialize_store, make_dataset
from coarlib.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

MARGIN_TOLERANCE = 2e-2  # float16 targets, TF32 convolutions
WEIGHT_TOLERANCE = 1e-4  # of the largest weight; sums are float64 on both


def fit(store, out, device, *more):
    config = str(ROOT / "estimate/digits/regression_config_test.yaml")
    places = "--data.data_path", str(store), "--cfg.out_dir", str(out), "--cfg.device", device
    run_regression.main(["--config", config, *places, *more])
    return torch.load(out / "datamodels.pt", weights_only=True)["weight"].numpy()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The test-size digits store, filled on each device."""
    directory = tmp_path_factory.mktemp("gpu")
    for device in ("cpu", "cuda"):
        path = str(directory / device)
        initialize_store.main([path, "--spec", "digits_test"])
        model = str(directory / "m.pt")
        make_dataset.main(
            [path, "--task", "digits", "--set", f"model_path={model}", "--device", device]
        )
    return directory


def test_margins_on_the_gpu_are_those_of_the_cpu(stores):
    cpu, gpu = (Store.open(stores / device) for device in ("cpu", "cuda"))
    assert (cpu.array("masks") == gpu.array("masks")).all()
    one, two = (store.array("test_margins").astype(np.float32) for store in (cpu, gpu))
    assert np.abs(one - two).max() < MARGIN_TOLERANCE * np.abs(one).max()


@pytest.mark.parametrize("solver", ["least_squares", "ridge", "shared_prior", "lasso"])
def test_attributions_on_the_gpu_are_those_of_the_cpu(stores, tmp_path, solver):
    more = ("--cfg.solver", solver)
    on_cpu, on_gpu = (
        fit(stores / "cpu", tmp_path / device, device, *more) for device in ("cpu", "cuda")
    )
    assert np.abs(on_cpu - on_gpu).max() < WEIGHT_TOLERANCE * np.abs(on_cpu).max()

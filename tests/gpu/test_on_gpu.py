"""The same rows and the same attributions on a GPU as on the CPU, through the commands."""

import numpy as np
import pytest
import torch

from coarlib.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

MARGIN_TOLERANCE = 2e-2  # float16 targets, TF32 convolutions
WEIGHT_TOLERANCE = 1e-4  # of the largest weight; sums are float64 on both


def fill(command, spec, store, model, device):
    initialised = command(
        "coarlib.commands.store.initialize_store",
        *("--logging.logdir", store, "--logging.spec", spec),
    )
    assert initialised.returncode == 0, initialised.stderr
    filled = command(
        "estimate.digits.make_dataset",
        *("--expt.base_dir", store, "--expt.model_path", model, "--expt.device", device),
    )
    assert filled.returncode == 0, filled.stderr


def fit(command, store, out, device, *more):
    config = "estimate/digits/regression_config_test.yaml"
    fitted = command(
        "coarlib.commands.fit.run_regression",
        *("--config", config, "--data.data_path", store, "--cfg.out_dir", out),
        *("--cfg.device", device, *more),
    )
    assert fitted.returncode == 0, fitted.stderr
    return torch.load(out / "datamodels.pt", weights_only=True)["weight"].numpy()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The test-size digits store, filled on each device."""
    import subprocess
    import sys

    from paths import ROOT

    def command(module, *arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    directory = tmp_path_factory.mktemp("gpu")
    for device in ("cpu", "cuda"):
        fill(command, "specs/digits_test.json", directory / device, directory / "m.pt", device)
    return directory


def test_margins_on_the_gpu_are_those_of_the_cpu(stores):
    cpu, gpu = (Store.open(stores / device) for device in ("cpu", "cuda"))
    assert (cpu.array("masks") == gpu.array("masks")).all()
    one, two = (store.array("test_margins").astype(np.float32) for store in (cpu, gpu))
    assert np.abs(one - two).max() < MARGIN_TOLERANCE * np.abs(one).max()


@pytest.mark.parametrize("solver", ["least_squares", "ridge", "shared_prior", "lasso"])
def test_attributions_on_the_gpu_are_those_of_the_cpu(stores, tmp_path, command, solver):
    more = ("--cfg.solver", solver)
    on_cpu, on_gpu = (
        fit(command, stores / "cpu", tmp_path / device, device, *more) for device in ("cpu", "cuda")
    )
    assert np.abs(on_cpu - on_gpu).max() < WEIGHT_TOLERANCE * np.abs(on_cpu).max()

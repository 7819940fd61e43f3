"""Every (sample, tensor, step) contribution against the definition, in float64, 50 parameters."""

from functools import cache

import numpy as np
import pytest
from zoo.recorded_runs import Run, brute_force, tiny_data, tiny_model

from coarlib.history import NormRegulariser, open_run
from coarlib.path_kernel import explain

TOLERANCE = 1e-9
ADAM = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.2}
SGD = {"lr": 0.3, "momentum": 0.7}
RUNS = {
    "sgd": Run("SGD", {"lr": 0.5}),
    "sgd with L2": Run("SGD", {"lr": 0.5, "weight_decay": 0.1}),
    "momentum": Run("SGD", SGD),
    "dampening": Run("SGD", {**SGD, "dampening": 0.4, "weight_decay": 0.1}),
    "nesterov": Run("SGD", {**SGD, "nesterov": True, "weight_decay": 0.1}),
    "adam with L2": Run("Adam", ADAM),
    "adamw": Run("AdamW", ADAM),
    "groups": Run("AdamW", ADAM, groups=True),
    "groups of sgd": Run("SGD", SGD, groups=True),
    "schedule": Run("AdamW", ADAM, schedule=True),
    "clipping": Run("AdamW", ADAM, clip=0.3),
    "clipping of sgd": Run("SGD", SGD, clip=0.5, regulariser=NormRegulariser(0.05)),
    "regulariser": Run("AdamW", ADAM, regulariser=NormRegulariser(0.03)),
    "sum": Run("SGD", {"lr": 0.1, "momentum": 0.5}, reduction="sum"),
}


@cache
def truth(name):
    return brute_force(RUNS[name])


def decompose(name, path, **options):
    run = RUNS[name]
    model = run.record(path)
    train, test = tiny_data()
    return explain(
        open_run(path, model, run.loss(), train), *test, quiet=True, tolerance=1e-11, **options
    )


@pytest.mark.parametrize("count_at", ["taken", "acted"])
@pytest.mark.parametrize("name", RUNS)
def test_every_contribution_is_that_of_the_definition(name, count_at, tmp_path):
    wanted = truth(name)
    found = decompose(
        name,
        tmp_path / "run",
        count_at=count_at,
        by=[("sample", "tensor"), ("sample", "step"), ("tensor", "step"), "sample"],
    )
    data = wanted[count_at]
    close = {"rtol": 0, "atol": TOLERANCE}
    np.testing.assert_allclose(found.by("sample", "step"), data.sum(3), **close)
    np.testing.assert_allclose(found.by("sample", "tensor"), data.sum(4), **close)
    np.testing.assert_allclose(found.by("tensor", "step"), data.sum(2), **close)
    np.testing.assert_allclose(found.by("sample"), data.sum((3, 4)), **close)
    for source, key in (("weight_decay", "decay"), ("regulariser", "penalty")):
        by_tensor = found.by("tensor", source=source)
        np.testing.assert_allclose(by_tensor, wanted[key].sum(3), **close)
        if count_at == "acted":
            both = found.by("tensor", "step", source=source)
            np.testing.assert_allclose(both, wanted[key], **close)
    np.testing.assert_allclose(found["initial"], wanted["outputs"][0], **close)
    np.testing.assert_allclose(found["final"], wanted["outputs"][-1], **close)
    np.testing.assert_allclose(found.prediction, wanted["outputs"][-1], **close)
    assert found.checks()["sum_of_parts"] < 1e-12


def test_the_brute_force_can_tell_runs_apart():
    """A guard of the oracle: options that must matter do."""
    plain, nesterov = truth("momentum")["taken"], truth("nesterov")["taken"]
    assert np.abs(plain - nesterov).max() > 1e-3
    assert np.abs(truth("adamw")["acted"] - truth("adamw")["taken"]).max() > 1e-3
    assert sum(p.numel() for p in tiny_model().parameters()) == 50

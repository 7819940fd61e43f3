"""Shared fixtures: small specs, stores, and a way to run commands as users do."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import DATA, ROOT

from coarlib.store import Store, initialize
from coarlib.store.spec import parse_spec

os.environ.setdefault("MPLBACKEND", "Agg")

REGISTRIES = {
    "coarlib.ablation.ways.base": "ABLATIONS",
    "coarlib.regression.solvers": "SOLVERS",
    "coarlib.scoring.metrics": "METRICS",
}


@pytest.fixture(autouse=True)
def registries_forget():
    """What a test registers is known to that test alone."""
    known = [
        vars(sys.modules[module])[name]
        for module, name in REGISTRIES.items()
        if module in sys.modules
    ]
    before = [dict(registry) for registry in known]
    yield
    for registry, old in zip(known, before, strict=True):
        registry.clear()
        registry.update(old)


@pytest.fixture
def spec_content():
    """The JSON content of a small spec; tests change what they test."""
    return {
        "num_models": 24,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [10]},
            "margins": {"dtype": "float16", "shape": [3]},
        },
        "design": {"kind": "bernoulli", "keep_prob": 0.8, "seed": 1},
    }


@pytest.fixture
def store(tmp_path, spec_content):
    """A fresh store of the small spec."""
    initialize(tmp_path / "store", parse_spec(json.dumps(spec_content)))
    return Store.open(tmp_path / "store")


@pytest.fixture
def make_rows():
    """Build arrays for rows of a store, different in every row, with the masks of its design."""

    def make(store, rows):
        masks = {}
        if store.design is not None:
            masks = {store.design.array: store.draw_masks(store.design, rows)}
        return {
            key: (np.arange(array.row_bytes // array.dtype.itemsize) + rows[:, None] * 7 + 1)
            .reshape(len(rows), *array.shape)
            .astype(np.int64)
            .__mod__(2 if array.dtype == np.bool_ else 251)
            .astype(array.dtype)
            for key, array in store.spec.schema.items()
        } | masks

    return make


@pytest.fixture
def command():
    """Run ``python -m MODULE ARGS…`` from ``cwd`` (the root by default); returns the result."""

    def run(module, *args, cwd=ROOT, timeout=240, env=None):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(env or {})},
        )

    return run


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """The small demo, run once for all tests: its directory, and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    words = ["-m", "estimate.demo", "--demo.out_dir", str(out), "--demo.size", "test"]
    result = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


@pytest.fixture
def data_dir():
    """The folder of real models and data beside the checkout."""
    if not DATA.is_dir():
        pytest.skip("the folder of real models and data (../shared/data) is not here")
    return DATA

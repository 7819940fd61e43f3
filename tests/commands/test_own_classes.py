"""A solver and a way of ablating of one's own: from what is typed, never from a store."""

import numpy as np
import pytest
from paths import ROOT

from coarlib.commands.__main__ import load
from coarlib.errors import CoarlibError
from coarlib.interop.banks import write_bank
from coarlib.regression import Attributions
from coarlib.store import Store

NEGATED = str(ROOT / "tests" / "zoo" / "toy_ablation.py:Negated")
SOLVER = """
from dataclasses import dataclass
from typing import ClassVar
from coarlib.regression.solvers import Ridge, Solver

@dataclass(frozen=True)
class Heavy(Ridge):
    name: ClassVar[str] = "heavy"
    lam: float | None = 1e9

@dataclass(frozen=True)
class Taken(Ridge):
    name: ClassVar[str] = "lasso"

class Other: pass
"""


def coar(line):
    name, *words = line.split()
    load(name).main([*words, "--quiet"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SOLVER)
    rng = np.random.default_rng(0)
    masks = rng.random((60, 5)) < 0.8
    outputs = (masks @ rng.normal(size=(5, 3))).astype(np.float32)
    write_bank("rows", masks, outputs)
    return tmp_path


def test_a_solver_of_ones_own(place):
    coar("run_regression rows --solver own.py:Heavy --out heavy")
    found = Attributions.load("heavy")
    assert found.summary["solver"] == "heavy" and np.abs(found.weight).max() < 1e-3
    coar("run_regression --config heavy/arguments.yaml --out again")  # a person names the file
    assert np.array_equal(Attributions.load("again").weight, found.weight)
    coar("run_regression rows --solver own.py:Heavy --lam 0.01 --out light")
    assert np.abs(Attributions.load("light").weight).max() > 0.1
    coar("power rows --solver own.py:Heavy --points 2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:Other", "own.py:Other is no Solver class"),
        ("own.py:Taken", "must not be called lasso"),
        ("own.py:Hevy", "did you mean 'Heavy'"),
        ("away.py:Heavy", "no file away.py"),
        ("no.module:Heavy", "cannot import no.module"),
    ],
)
def test_what_is_no_solver_is_refused(place, name, message):
    with pytest.raises(CoarlibError, match=message):
        coar(f"run_regression rows --solver {name}")


def test_a_way_of_ablating_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for store, ablate in (("plain", "zero_activation"), ("own", NEGATED)):
        settings = f"--set model_path=model.pt --set ablate={ablate}"
        coar(f"initialize_store {store} --task digits {settings} --rows 2 --keep 0.9")
        coar(f"make_dataset {store} --task digits {settings}")
    plain, own = (np.array(Store.open(s).array("test_margins")) for s in ("plain", "own"))
    assert np.abs(plain - own).max() > 0.1
    coar(f"recompute own 1 {settings}")
    # What the store recorded is a text, and is not loaded.
    with pytest.raises(CoarlibError, match="ablate must be"):
        coar("recompute own 1")

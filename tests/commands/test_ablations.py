"""Ways of ablating from the command line: those of the project, and one that somebody adds."""

import inspect

import numpy as np
import pytest
from paths import ROOT

from coarlib.ablation import ABLATIONS, ComponentTask
from coarlib.commands.__main__ import main
from coarlib.setups import load
from coarlib.store import Store

SETUPS = sorted(path.parent.name for path in ROOT.glob("estimate/*/task.py"))
TOY = str(ROOT / "tests" / "zoo" / "toy_ablation.py")
SPEC = """{"num_models": 3, "schema": {"masks": {"dtype": "bool_", "shape": [240]},
"test_margins": {"dtype": "float32", "shape": [450]}},
"design": {"kind": "bernoulli", "keep_prob": 0.9}}"""


def rows(tmp_path, name, *words):
    spec, store = tmp_path / "spec.json", tmp_path / name
    spec.write_text(SPEC)
    main(["initialize_store", "--logging.logdir", str(store), "--logging.spec", str(spec)])
    main(["make_dataset", "--expt.base_dir", str(store), *words])
    return np.array(Store.open(store).array("test_margins"))


@pytest.mark.parametrize("setup", SETUPS)
def test_every_set_up_of_components_takes_every_way_of_ablating(setup):
    module = __import__(f"estimate.{setup}.task", fromlist=["task"])
    kinds = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, ComponentTask)
        if value.__module__ == module.__name__
    ]
    for kind in kinds:
        needed = inspect.signature(kind).parameters.values()
        settings = {p.name: "nowhere" for p in needed if p.default is inspect.Parameter.empty}
        for ablate in ABLATIONS:
            assert kind(**settings, ablate=ablate).ablate == ablate


def test_a_way_of_ablating_is_chosen_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    task = ("--expt.task", "estimate.digits.task")
    toy = ("--expt.task", f"{TOY}:DigitsTask", "--expt.task_args", '{"ablate": "negated"}')
    found = [
        rows(tmp_path, "zero", *task),
        rows(tmp_path, "mean", *task, "--expt.task_args", '{"ablate": "mean"}'),
        rows(tmp_path, "toy", *toy),
    ]
    for at, one in enumerate(found):
        assert all(np.abs(one - other).max() > 0.1 for other in found[:at])


def test_the_added_way_is_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    task = load(f"{TOY}:DigitsTask", {"ablate": "negated"}, ".")
    assert task.ablate == "negated" and not task.way.on_weights and not task.fuse

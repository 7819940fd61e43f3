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


TASK = """
import torch
from torch import nn
from coarlib.ablation import ablate

def task(first=0, ablate_by="zero_weights"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    inputs, labels = torch.randn(12, 4)[first:first + 6], torch.arange(6) % 3
    return ablate(model, (inputs, labels), "linear_row", ablate=ablate_by)
"""


def test_attributions_are_used_with_the_task_that_they_are_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK)
    task = load("mine.py", {})
    store = Store.create(tmp_path / "store", task, rows=60, keep_prob=0.8)
    main(["make_dataset", "store", "--task", "mine.py", "--quiet"])
    main(["run_regression", "store", "--out", "fit", "--quiet"])
    words = ["fit", "--task", "mine.py", "--ablations", "5", "--baselines", "random"]
    assert store.path.name == "store"
    main(["evaluate", *words, "--out", "here"])
    for setting in ("first=6", "ablate_by=mean"):
        for command in (["evaluate", *words], ["edit", *words[:3], "--target", "0"]):
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                main([*command, "--out", "no", "--set", setting])
            assert end.value.code == 2
            assert "fitted on rows of another task than mine.py" in capsys.readouterr().err
    main(["evaluate", *words, "--out", "there", "--set", "first=6", "--allow_other_task"])

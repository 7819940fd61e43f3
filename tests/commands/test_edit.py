"""The backdoor example end to end, and the arguments of coar edit."""

import json

import numpy as np
import pytest
import torch
from paths import ROOT

from coarlib.commands.fit import run_regression
from coarlib.commands.judge import edit
from coarlib.commands.store import initialize_store
from coarlib.errors import ArgumentError, CoarlibError
from coarlib.store.spec import load_spec
from estimate.digits.model import DigitsResNet
from estimate.digits_backdoor import make_dataset
from estimate.digits_backdoor.task import DigitsBackdoorTask, poisoned

SPECS = ROOT / "specs"
ROWS = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with the poisoned model and attributions from 300 ablations."""
    out = tmp_path_factory.mktemp("backdoor")
    content = json.loads((ROOT / "specs" / "digits_backdoor_test.json").read_text()) | {
        "num_models": ROWS
    }
    (out / "spec.json").write_text(json.dumps(content))
    store = ["--expt.base_dir", str(out / "store")]
    initialize_store.main(
        ["--logging.logdir", str(out / "store"), "--logging.spec", str(out / "spec.json")]
    )
    make_dataset.main([*store, "--quiet", "--expt.model_path", str(out / "model.pt")])
    run_regression.main(
        f"--data.data_path {out / 'store'} --data.num_train {ROWS - 40} --data.num_val 40 "
        f"--cfg.k 1 --cfg.solver ridge --cfg.out_dir {out / 'attributions'}".split()
    )
    return out


def arguments(made, out, **changes):
    values = {
        "task": "digits_backdoor",
        "task_args": json.dumps({"model_path": str(made / "model.pt")}),
        "attributions": made / "attributions",
        "target": "450-855",
        "reference": "0-449",
        "out_dir": out,
        **changes,
    }
    return [word for key, value in values.items() for word in (f"--edit.{key}", str(value))]


def test_a_backdoor_is_cut_out(made, tmp_path, capsys):
    edit.main(arguments(made, tmp_path / "edit"))
    found = json.loads((tmp_path / "edit" / "edit.json").read_text())
    before, after = found["test"]["before"], found["test"]["after"]
    assert before["target"] < 0.2 and before["reference"] > 0.95
    assert after["target"] > before["target"] + 0.25
    assert after["reference"] > before["reference"] - 0.05
    assert 0 < len(found["ablated"]) == after["count"] <= 20
    assert found["components"][0] in capsys.readouterr().out
    # The saved weights are those of the edit, and do what the table says.
    model = DigitsResNet()
    model.load_state_dict(torch.load(tmp_path / "edit" / "model.pt", weights_only=True))
    task = DigitsBackdoorTask(str(made / "model.pt"))
    examples = task.examples()
    with torch.no_grad():
        right = (model.eval()(*examples.inputs).argmax(1) == examples.targets)[450:].float()
    assert abs(right.mean().item() - after["target"]) < 0.1


def test_specs_fit_the_task(made):
    task = DigitsBackdoorTask(str(made / "model.pt"))
    task.prepare(torch.device("cpu"))
    for name in ("digits_backdoor", "digits_backdoor_test"):
        spec = load_spec(SPECS / f"{name}.json")
        assert spec.schema["masks"].shape == (task.num_features,)
        assert spec.schema["test_margins"].shape == (task.num_examples,)
    images, labels = poisoned()
    bright = (images[:, 0, -2:, -2:] == 1).all((1, 2))
    assert (labels[bright] == 0).all() and 0.05 < bright.float().mean() < 0.15


def test_examples_by_index_range_label_and_outcome():
    labels, right = np.array([3, 8, 8, 1, 3]), np.array([True, False, True, True, True])
    for text, places in {
        "0": [0],
        "1-2,4": [1, 2, 4],
        "label:8": [1, 2],
        "wrong": [1],
        "right": [0, 2, 3, 4],
    }.items():
        assert np.flatnonzero(edit.examples_of(text, labels, right)).tolist() == places


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed_loss": "nan"}, "must be a float, not 'nan'"),
        ({"allowed_loss": "-0.5"}, "must be a number of at least 0, not -0.5"),
        ({"target": "eights"}, "'eights' names no examples: give indices"),
        ({"target": "3-"}, "'3-' names no examples"),
        ({"target": "2000"}, "2000 names none of the 856 examples"),
        ({"target": "0-855", "reference": "0"}, "no example is left as a reference"),
        ({"statistic": "t_lik"}, "must be one of t_like, mean_difference"),
        ({"task": "digits"}, r"holds attributions of \[240, 856\]"),
    ],
)
def test_bad_arguments_are_refused(made, tmp_path, changes, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoarlibError, match=message):
        edit.main(arguments(made, tmp_path / "edit", **changes))
    assert not (tmp_path / "edit" / "edit.json").exists()


def test_a_label_needs_one_label_an_example():
    with pytest.raises(ArgumentError, match="label:3"):
        edit.examples_of("label:3", np.zeros((2, 5), np.int64), np.ones(2, np.bool_))


def edited_by(made, out, tmp_path, body, *more):
    """Edit with a task of one's own, made of the backdoor's by a class body."""
    file = tmp_path / "own_task.py"
    file.write_text(
        "from estimate.digits_backdoor.task import DigitsBackdoorTask\n"
        "from coarlib.outputs import cross_entropy\n"
        f"class Own(DigitsBackdoorTask):\n    {body}\n"
    )
    words = arguments(made, out, task=f"{file}:Own")
    edit.main([*words, "--allow_other_task", *more])
    return json.loads((out / "edit.json").read_text())


def test_outputs_that_are_no_margins_have_no_accuracy(made, tmp_path, capsys):
    body = "outputs = {'test_margins': cross_entropy}"
    with pytest.raises(ArgumentError, match="no margins, so there is no accuracy to lose"):
        edited_by(made, tmp_path / "edit", tmp_path, body)
    with pytest.raises(ArgumentError, match="none is right or wrong"):
        edit.examples_of("wrong", np.zeros(3, np.int64), None)
    found = edited_by(made, tmp_path / "edit", tmp_path, body, "--edit.allowed_loss", "0.5")
    assert found["value"] == "mean test_margins" and "right" not in capsys.readouterr().out


def test_a_model_that_is_not_the_one_measured_is_not_saved(made, tmp_path):
    body = (
        "calls = 0\n"
        "    def model(self):\n"
        "        found, self.calls = super().model(), self.calls + 1\n"
        "        if self.calls > 1:\n"
        "            for parameter in found.parameters():\n"
        "                parameter.data.neg_()\n"
        "        return found"
    )
    with pytest.raises(ArgumentError, match="do not do what was measured"):
        edited_by(made, tmp_path / "edit", tmp_path, body)
    assert not (tmp_path / "edit").exists()


def test_ablations_of_activations_cannot_be_saved_as_weights(made, tmp_path):
    settings = json.dumps({"model_path": str(made / "model.pt"), "ablate": "mean"})
    with pytest.raises(ArgumentError, match="ablates by mean, which changes activations"):
        edit.main([*arguments(made, tmp_path / "edit", task_args=settings), "--allow_other_task"])
    assert not (tmp_path / "edit").exists()


def test_a_single_target_is_judged_in_sample(made, tmp_path, capsys):
    edit.main(arguments(made, tmp_path / "edit", target="500"))
    assert json.loads((tmp_path / "edit" / "edit.json").read_text())["in_sample"] == ["target"]
    assert "in sample: it also chose the edit" in capsys.readouterr().out

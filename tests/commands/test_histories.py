"""record_history, explain and plot_explanation as users call them; the set-ups."""

import json

import numpy as np
import pytest
import torch

from coarlib.commands.history import explain as explain_command
from coarlib.commands.history import plot_explanation, plot_history, record_history
from coarlib.commands.judge import report
from coarlib.errors import ArgumentError, SetupError
from coarlib.history import open_run
from coarlib.history.setups import train_with_history
from coarlib.path_kernel import explain
from coarlib.regression import Attributions
from estimate.cifar2_path.setup import Cifar2
from estimate.modular_addition.setup import ModularAddition

OPTIONS = json.dumps({"num_train": 40, "num_steps": 12, "batch_size": 16})
SETUP = ["--setup.name", "digits", "--setup.options", OPTIONS]


def test_record_explain_plot(tmp_path, capsys):
    history = ["--history.path", f"{tmp_path}/h"]
    record_history.main([*SETUP, *history, "--history.every", "4", "--history.stop_at", "6"])
    record_history.main([*SETUP, *history, "--history.every", "4"])
    assert "12 of 12 updates recorded" in capsys.readouterr().out
    out = ["--explain.out", f"{tmp_path}/e"]
    arguments = [*SETUP, *history, *out, "--explain.num_test", "3", "--explain.tolerance", "1e-3"]
    arguments += ["--explain.by", "sample,tensor+step,sample+tensor"]
    explain_command.main([*arguments, "--explain.stop", "1"])
    assert "still lacks" in capsys.readouterr().out
    explain_command.main([*arguments, "--explain.attributions", "1"])
    assert Attributions.load(f"{tmp_path}/e.attributions").weight.shape == (40, 3)
    plot_explanation.main([*out, "--plot.to", f"{tmp_path}/plots"])
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4
    plot_history.main([*SETUP, *history, "--plot.to", f"{tmp_path}/plots", "--plot.points", "2"])
    assert (tmp_path / "plots" / "training.png").stat().st_size > 1000


def test_explain_and_report_go_together_with_their_defaults(tmp_path, capsys):
    history, out = str(tmp_path / "h"), str(tmp_path / "e")
    record_history.main([history, *SETUP])
    explain_command.main([history, *SETUP, "--out", out, "--tolerance", "1e-3", "--num_test", "6"])
    report.main([out])
    page = (tmp_path / "e" / "report.html").read_text()
    assert "What training did to 6 images" in page
    assert '<figure id="helpful-harmful">' in page and '<figure id="steps-by-source">' in page
    assert "the parts add up" in page.lower() and "note:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", "{}", "did you mean 'digits_path'"),
        ("digits", '{"steps": 3}', "has no setting steps"),
        ("digits", "{", "must be key=value"),
    ],
)
def test_unknown_set_ups_and_options(tmp_path, name, options, message):
    arguments = ["--setup.name", name, "--setup.options", options]
    with pytest.raises(ArgumentError, match=message):
        record_history.main([*arguments, "--history.path", f"{tmp_path}/h"])


def add_up(setup, path, **options):
    model = train_with_history(setup, path, quiet=True, **options)
    points = tuple(t[:2] for t in setup.test_samples())
    sub = open_run(path, model, setup.loss(), setup.train_samples())
    found = explain(sub, *points, output="logit", by=["tensor"], tolerance=1e-3, quiet=True)
    return found.checks()


def test_modular_addition(tmp_path):
    setup = ModularAddition(7, 18, 8, 6, 10, width=8, heads=2, hidden=16)
    assert add_up(setup, tmp_path / "h")["total"] < 1e-2


def test_cifar2(tmp_path, data_dir):
    files = (
        data_dir / "cifar10_train4000_lossless.npz",
        data_dir / "cifar10_test1000_lossless.npz",
    )
    setup = Cifar2(*files, num_steps=3, batch_size=8)
    assert set(setup.train_samples()[1].tolist()) == {0, 1}
    assert add_up(setup, tmp_path / "h", every=2)["total"] < 1e-2
    with pytest.raises(SetupError, match="no size"):
        Cifar2(*files, size="tpu")


def test_cifar2_without_data(tmp_path):
    with pytest.raises(SetupError, match="there is no file"):
        Cifar2(tmp_path / "none.npz", tmp_path / "none.npz")


def test_batches_of_a_set_up_are_a_function_of_the_step():
    setup = ModularAddition(7, 18, 8, 6, 10, width=8, heads=2, hidden=16)
    count = len(setup.train_samples()[0])
    epoch = np.concatenate([setup.batch(step, count) for step in range(2)])
    assert sorted(epoch) == list(range(count))
    assert torch.equal(setup.model().encoder.weight, setup.model().encoder.weight)

"""coar metagradient as users call it: of seeds, of a recorded history, by several processes."""

import subprocess
import sys

import numpy as np
import pytest

from coarlib.commands.history import metagradient, record_history
from coarlib.commands.leaving import after_rows
from coarlib.errors import ArgumentError
from coarlib.regression import Attributions
from coarlib.store import Store

TASK = """
from torch import Generator, nn, randn
from coarlib.retraining import RetrainTask, Trainer

X = randn(46, 3, generator=Generator().manual_seed(0)).double()
Y = (X.sum(1) > 0).long()

class Tiny(RetrainTask):
    def __init__(self, epochs=2):
        self.trainer = Trainer(
            lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double(),
            X[:40], Y[:40], epochs, 10,
        )
        super().__init__(self.trainer, lambda model, device: model(X[40:])[:, 0])

    def held_out(self):
        return X[40:], Y[40:]

class Mute(RetrainTask):
    def __init__(self):
        super().__init__(Trainer(lambda: nn.Linear(3, 2).double(), X, Y), lambda model, device: 0)
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "tiny.py").write_text(TASK)
    return ["--task", f"{tmp_path}/tiny.py:Tiny", "--device", "cpu"]


def test_seeds_are_differentiated_and_kept(task, tmp_path, capsys):
    out = str(tmp_path / "m")
    arguments = [out, *task, "--seeds", "3", "--set", "epochs=3", "--num_test", "5"]
    metagradient.main(arguments)
    text = capsys.readouterr().out
    assert "smoothness: 6 removals" in text and f"next: coar report {out}.attributions" in text
    weight = Attributions.load(f"{out}.attributions").weight
    assert weight.shape == (40, 5) and np.abs(weight).max() > 0.01
    assert Store.open(out).completed().sum() == 15
    assert after_rows(Store.open(out)) == f"next: coar report {out}.attributions"
    metagradient.main(["--config", f"{out}/arguments.yaml"])  # nothing is left to compute
    np.testing.assert_array_equal(Attributions.load(f"{out}.attributions").weight, weight)


def test_processes_share_out_the_rows(task, tmp_path):
    command = [sys.executable, "-m", "coarlib", "metagradient", str(tmp_path / "m"), *task]
    command += ["--seeds", "4", "--memory_mb", "1", "--quiet", "1"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [worker.communicate()[0].count("next:") for worker in workers] == [1, 1]
    metagradient.main([str(tmp_path / "alone"), *task, "--seeds", "4"])
    pair = [Attributions.load(tmp_path / f"{name}.attributions").weight for name in ("m", "alone")]
    np.testing.assert_allclose(*pair, rtol=0, atol=1e-7)


def test_a_recorded_history(tmp_path):
    setup = ["--task", "digits_path"]
    for setting in ("num_train=40", "num_steps=12", "batch_size=16"):
        setup += ["--set", setting]
    record_history.main([str(tmp_path / "h"), *setup])
    command = [str(tmp_path / "m"), *setup, "--history", str(tmp_path / "h"), "--num_test", "3"]
    metagradient.main([*command, "--quantity", "logit", "--removals", "0"])
    assert Attributions.load(tmp_path / "m.attributions").weight.shape == (40, 3)
    with pytest.raises(ArgumentError, match="--kept says how to train"):
        metagradient.main([*command, "--kept", "0.3"])


def test_a_task_that_does_not_say_how_it_trains(task, tmp_path):
    task[1] = task[1].replace("Tiny", "Mute")
    with pytest.raises(ArgumentError, match="does not say how it is trained"):
        metagradient.main([str(tmp_path / "m"), *task])

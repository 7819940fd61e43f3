"""Each defect of the reference implementation (explaind 0.0.2), as a case that ours gets right.

The same check for all: the parts add up to the trained model's own output.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.recorded_runs import NUM_SAMPLES, Run, tiny_data, tiny_model

from coarlib.errors import HistoryError
from coarlib.history import NormRegulariser, TrainingLoss, open_run, record
from coarlib.path_kernel import explain

TOLERANCE = 1e-6
ADAM, SGD = {"lr": 0.05, "weight_decay": 1.0}, {"lr": 0.3, "momentum": 0.9}
FULL = tuple(np.random.default_rng(0).permutation(NUM_SAMPLES).tolist() for _ in range(5))
CASES = {
    "ragged batches": Run("AdamW", ADAM, batches=([0, 1, 2, 3], [4], [5, 6, 7], [8, 9], [1, 3])),
    "schedule": Run("AdamW", ADAM, schedule=True),
    "regulariser": Run("AdamW", ADAM, regulariser=NormRegulariser(0.05)),
    "regulariser of SGD": Run("SGD", SGD, regulariser=NormRegulariser(0.05, 1.0)),
    "logits with cross entropy": Run("AdamW", ADAM, function=F.cross_entropy),
    "shuffled full batches": Run("AdamW", ADAM, batches=FULL),
    "nesterov": Run("SGD", {**SGD, "nesterov": True}),
    "dampening": Run("SGD", {**SGD, "dampening": 0.3}),
    "groups": Run("AdamW", ADAM, groups=True),
    "clipping": Run("AdamW", ADAM, clip=0.1),
}


def explained(run, path, **options):
    model = run.record(path)
    train, test = tiny_data()
    sub = open_run(path, model, run.loss(), train)
    return explain(sub, *test, quiet=True, tolerance=1e-9, **options), model, test


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_model(case, tmp_path):
    found, model, test = explained(CASES[case], tmp_path / "h")
    outputs = model(test[0]).detach().numpy()
    np.testing.assert_allclose(found.prediction, outputs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found["final"], outputs, rtol=0, atol=1e-12)
    by_sample = found.by("sample").sum(-1)
    np.testing.assert_allclose(by_sample, found["data"], rtol=0, atol=1e-12)


def test_shuffled_full_batches_give_each_sample_its_own_contribution(tmp_path):
    """The order of a full batch does not matter; the reference mixes samples up (r = 0.19)."""
    plain = Run("AdamW", ADAM, batches=(list(range(NUM_SAMPLES)),) * 5)
    one, two = (
        explained(run, tmp_path / name)[0].by("sample")
        for name, run in (("a", CASES["shuffled full batches"]), ("b", plain))
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-9)


def test_weight_decay_is_counted_once(tmp_path):
    """The reference returns it times the learning rate twice."""
    found, *_ = explained(Run("AdamW", ADAM), tmp_path / "h", by=["step"])
    without = found["initial"] + found["data"]
    np.testing.assert_allclose(found["weight_decay"], found["final"] - without, atol=TOLERANCE)
    decay = found.by("step", source="weight_decay").sum(-1)
    np.testing.assert_allclose(decay, found["weight_decay"], rtol=0, atol=1e-12)
    assert np.abs(found["weight_decay"]).max() > 1e-3


def test_batch_norm_is_refused_and_group_norm_is_exact(tmp_path):
    """The reference accepts BatchNorm and is wrong by 0.55."""
    train, test = tiny_data()

    def run(norm, path):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), norm, nn.Tanh(), nn.Linear(6, 5)).double()
        optimizer = torch.optim.AdamW(model.parameters(), 0.05)
        loss = TrainingLoss(F.cross_entropy)
        options = {"samples": train, "loss": loss, "num_steps": 3, "max_batch": 5, "quiet": True}
        with record(model, optimizer, path, **options) as history:
            for batch in ([0, 1, 2, 3, 4], [5, 6, 7], [8, 9]):
                optimizer.zero_grad()
                F.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
                history.batch(batch)
                optimizer.step()
        return explain(open_run(path, model, loss, train), *test, quiet=True)

    with pytest.raises(HistoryError, match="BatchNorm1d"):
        run(nn.BatchNorm1d(6), tmp_path / "batch")
    assert run(nn.GroupNorm(2, 6), tmp_path / "group").checks()["total"] < 1e-5


def test_float64_and_float32_are_both_followed(tmp_path):
    """The reference keeps float32 parameters only."""
    assert tiny_model().double()[0].weight.dtype == torch.float64
    found, *_ = explained(Run("AdamW", ADAM), tmp_path / "h")
    assert found.by("sample").dtype == np.float64

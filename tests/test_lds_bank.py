"""A bank of retrained models in one call, of a Trainer or of one's own loop."""

import numpy as np
import pytest
import torch
from torch import nn

import coarlib as cl
from coarlib.errors import StoreError
from coarlib.outputs import margin_log_sum_exp

X = torch.randn(46, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
TEST = X[40:], Y[40:]


def loop(subset, seed):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[subset]), Y[subset]).backward()
        optimizer.step()
    return model


def arrays(bank):
    return bank.array("masks"), bank.array("test_margins")


def test_a_bank_of_a_trainer_is_made_once(tmp_path):
    trainer = cl.Trainer(lambda: nn.Linear(3, 2), X[:40], Y[:40], epochs=2, batch_size=10)
    options = {"runs": 2, "out": tmp_path / "bank", "device": "cpu", "quiet": True}
    bank = cl.lds_bank(trainer, TEST, 12, **options)
    masks, outputs = arrays(bank)
    assert masks.shape == (12, 40) and (np.asarray(masks).sum(1) == 20).all()
    assert outputs.shape == (12, 2, 6) and np.asarray(outputs).std() > 0
    written = (tmp_path / "bank" / "test_margins.npy").stat().st_mtime_ns
    cl.lds_bank(trainer, TEST, 12, **options)
    assert (tmp_path / "bank" / "test_margins.npy").stat().st_mtime_ns == written
    with pytest.raises(StoreError):
        cl.lds_bank(trainer, TEST, 12, **options | {"kept": 0.25})


def test_a_bank_of_a_loop_of_ones_own_ranks_attributions(tmp_path):
    def outputs_of(model, device):
        return margin_log_sum_exp(model(TEST[0]), TEST[1])

    options = {"runs": 2, "num_examples": 40, "out": tmp_path / "bank", "device": "cpu"}
    bank = cl.lds_bank(loop, outputs_of, 60, quiet=True, **options)
    same = cl.lds_bank(loop, TEST, 60, quiet=True, **options | {"out": tmp_path / "same"})
    np.testing.assert_array_equal(arrays(bank)[1], arrays(same)[1])
    agree = (2 * Y[:40] - 1)[:, None] * (2 * TEST[1] - 1)[None]
    scores = agree * (X[:40] @ TEST[0].T)
    found = cl.lds(scores.numpy(), *arrays(bank))
    chance = cl.lds(np.random.default_rng(0).standard_normal((40, 6)), *arrays(bank))
    assert found.mean > chance.mean + 0.2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(20, 3), r"data is a pair .inputs, targets., .*not Tensor"),
        (lambda model: torch.zeros(3), r"evaluate.model, device. failed: .*takes 1 positional"),
        (lambda model, device: None, r"evaluate.model, device. failed"),
    ],
)
def test_what_measures_no_models_is_refused(tmp_path, data, words):
    with pytest.raises(cl.CoarlibError, match=words):
        cl.lds_bank(
            lambda subset, seed: torch.nn.Linear(3, 2),
            data,
            4,
            num_examples=20,
            out=tmp_path / "bank",
            quiet=True,
        )

"""Settings of the processor come back, and replays have those of training."""

import pytest
import torch
from torch.nn import functional as F

from coarlib.devices import flushed_denormals, flushes_denormals
from coarlib.errors import HistoryError
from coarlib.history import TrainingLoss, open_run, record

TINY = 1e-39


def half(values):
    return float((values * 0.5).sum())


def test_denormals_are_zeros_within_and_the_setting_returns():
    tiny = torch.full((100,), TINY)
    before = flushes_denormals()
    with flushed_denormals():
        assert flushes_denormals() and half(tiny) == 0.0
        with flushed_denormals(False):
            assert not flushes_denormals() and half(tiny) > 0.0
        assert flushes_denormals()
    assert flushes_denormals() == before
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert flushes_denormals() == before


def test_states_are_replayed_as_they_were_trained(tmp_path):
    """Second moments of gradients of 1e-20 are denormal, and so decide where Adam goes."""
    torch.manual_seed(0)
    samples = 1e-20 * torch.randn(8, 5), torch.randn(8, 1)
    model, loss = torch.nn.Linear(5, 1, bias=False), TrainingLoss(F.mse_loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, eps=1e-25)
    with record(
        model, optimizer, tmp_path, samples=samples, loss=loss, num_steps=6, max_batch=8, every=3
    ) as history:
        for _ in range(6):
            optimizer.zero_grad()
            F.mse_loss(model(samples[0]), samples[1]).backward()
            history.batch(range(8))
            optimizer.step()
    run = open_run(tmp_path, model, loss, samples)
    with flushed_denormals():
        for number in run.walk.numbers:
            run.walk.theta(number)  # an error if the digests of the recording are missed
    with flushed_denormals(), pytest.raises(HistoryError, match="does not give the recorded"):
        open_run(tmp_path, model, loss, samples).walk.theta(2)

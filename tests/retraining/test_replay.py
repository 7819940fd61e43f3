"""Recorded steps give what unrecorded ones give; a processor stands in for the accelerator."""

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.retraining import Trainer
from coarlib.retraining import stack as stacks
from coarlib.retraining.replay import WARM_CALLS, Replayed

CPU = torch.device("cpu")


class Recorder:
    """Records as a CUDA graph does: nothing is computed until it is repeated, into fixed places."""

    def __init__(self, waits=False):
        self.count, self.waits = 0, waits

    def watched(self, work):
        return work(), self.waits

    def recorded(self, work):
        self.count += 1
        kept = [None if part is None else torch.full_like(part, torch.nan) for part in work()]

        def repeat():
            for place, part in zip(kept, work(), strict=True):
                if place is not None:
                    place.copy_(part)

        return kept, repeat


def test_each_set_of_shapes_is_recorded_once():
    recorder = Recorder()
    replayed = Replayed(lambda a, b: [a + b, None], recorder)
    for size in (3, 3, 2, 3, 3, 2, 2, 3, 2):
        a = torch.rand(size)
        found, nothing = replayed(a, a)
        assert torch.equal(found, 2 * a)
        assert nothing is None
    assert recorder.count == 2
    assert WARM_CALLS < 3


class Refusing(Recorder):
    def recorded(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("recorder", [Refusing(), Recorder(waits=True)])
def test_what_cannot_be_recorded_is_computed(recorder):
    replayed = Replayed(lambda a: [a * a], recorder)
    for value in range(5):
        assert replayed(torch.tensor([value]))[0] == value**2
    assert recorder.count == 0


@pytest.mark.parametrize("normed", [False, True])
def test_training_by_repeated_steps_is_training(monkeypatch, normed):
    def model():
        norm = nn.BatchNorm1d(8) if normed else nn.Identity()
        return nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 3))

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator)
    recipe = Trainer(model, inputs, labels, 4, 16, schedule="cosine", clip_norm=1.0)
    subsets = [np.arange(42), np.arange(18, 60)]
    recorder, original = Recorder(), stacks.Stack.__init__

    def recording(self, *given):
        original(self, *given)
        self._recorder = recorder
        self.way = self.way

    monkeypatch.setattr(stacks.Stack, "__init__", recording)
    stack = stacks.Stack(recipe, subsets, range(2), CPU)
    before = {name: part.clone() for name, part in stack.buffers.items()}
    for _ in stack.steps():
        pass
    assert recorder.count == 2  # whole batches, and the short ones that end an epoch
    if not normed:
        assert not before
    for seed, made in enumerate(stack.unstacked()):
        expected = recipe.train(subsets[seed], seed).state_dict()
        for name, value in made.state_dict().items():
            if "running" not in name and "tracked" not in name:
                torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)

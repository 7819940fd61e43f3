"""Recorded rows are the rows; a stand-in records where there are no graphs."""

import numpy as np
import pytest
import torch
from zoo.tiny_models import TinyResNet

from coarlib.ablation import ablate
from coarlib.ablation.launching import Replays
from coarlib.ablation.ways.weights import WeightAblation


class Machine:
    """Launches slowly, and replays what it recorded at once; replaying reads the same memory."""

    def __init__(self, launch=0.001, replay=0.0001):
        self.now, self.launch, self.replay, self.recorded, self.replayed = 0.0, launch, replay, 0, 0

    def run(self, state):
        self.now += self.launch
        return {"y": state.float() * 2}

    def record(self, run):
        self.recorded += 1
        values = run()

        def again():
            self.replayed += 1
            self.now += self.replay - self.launch
            for key, value in run().items():
                values[key].copy_(value)

        return values, again

    def replays(self):
        return Replays(self.record, lambda: None, lambda: self.now)


def states(count=6, width=5):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(0)) < 0.5


def test_a_recording_gives_what_running_gives_for_every_state():
    machine = Machine()
    replays = machine.replays()
    for state in states():
        assert torch.equal(replays.step(0, machine.run, state)(state)["y"], state.float() * 2)
    assert machine.recorded == 1
    assert machine.replayed >= 6


@pytest.mark.parametrize("machine", [Machine(launch=1.0), Machine(replay=0.00095)])
def test_what_launching_does_not_bound_is_not_replayed(machine):
    replays = machine.replays()
    for state in states():
        assert replays.step(0, machine.run, state) == machine.run


def test_what_cannot_be_recorded_runs_as_before():
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    machine = Machine()
    replays = Replays(refuse, lambda: None, lambda: machine.now)
    assert replays.step(0, machine.run, states()[0]) == machine.run


def test_rows_through_recordings_are_the_rows(monkeypatch):
    torch.manual_seed(0)
    images, labels = torch.rand(10, 3, 8, 8), torch.arange(10) % 4
    plain, fast = (ablate(TinyResNet().eval(), (images, labels), batch_size=4) for _ in range(2))
    fast.model().load_state_dict(plain.model().state_dict())
    for task in (plain, fast):
        task.prepare(torch.device("cpu"))
    machine = Machine()
    masks = np.random.default_rng(0).random((5, plain.num_features)) < 0.7
    expected = plain.rows(np.arange(5), masks)["test_margins"]
    monkeypatch.setattr(WeightAblation, "_accelerated", True)
    turns = iter(range(10**6))
    # The first three times of each batch are slow ones, those of its replay fast.
    fast._replays = Replays(machine.record, lambda: None, lambda: slow_then_fast(next(turns)))
    found = fast.rows(np.arange(5), masks)["test_margins"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert machine.recorded == 3 and machine.replayed > 3 * 4
    again = fast.rows(np.arange(5), masks[::-1].copy())["test_margins"]
    assert torch.allclose(again, expected.flip(0), atol=1e-5)
    assert machine.recorded == 3


def slow_then_fast(turn):
    """A clock read twice a run, of which six are timed for each of the batches."""
    runs = turn // 2
    lengths = [0.01 if run % 6 < 3 else 0.001 for run in range(runs)]
    return sum(lengths) + (0.01 if runs % 6 < 3 else 0.001) * (turn % 2)


def test_all_masks_are_spread_at_once(monkeypatch):
    task = ablate(TinyResNet().eval(), (torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    task.prepare(torch.device("cpu"))
    masks = torch.rand(7, task.num_features) < 0.6
    with task.ablation as ablation:
        one_by_one = ablation.spread(masks)
        monkeypatch.setattr(WeightAblation, "_accelerated", True)
        assert torch.equal(ablation.spread(masks), one_by_one)
        ablation.set(one_by_one[0])
        there = [x.clone() for x in ablation._parameters]
        monkeypatch.setattr(WeightAblation, "_accelerated", False)
        ablation.apply(masks[0])
        assert all(map(torch.equal, there, ablation._parameters))


def test_what_is_kept_between_rows_serves_inside_and_outside_of_inference_mode(monkeypatch):
    monkeypatch.setattr(WeightAblation, "_accelerated", True)
    model, images = TinyResNet().eval(), torch.rand(4, 3, 8, 8)
    task = ablate(model, (images, torch.zeros(4, dtype=torch.long)))
    task.prepare(torch.device("cpu"))
    before = [x.clone() for x in task._network.parameters()]
    for mode in (True, False, True):
        with torch.inference_mode(mode), task.ablation as ablation:
            ablation.apply(torch.zeros(task.num_features, dtype=torch.bool))
        assert all(map(torch.equal, before, task._network.parameters()))

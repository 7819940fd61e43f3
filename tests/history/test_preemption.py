"""Histories of runs that are killed: what is resumed is explained as if nothing had happened."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.preempted_runs import ADAM, LOSS, SGD, UPDATES, explained, in_child, kill, train
from zoo.recorded_runs import BATCHES, tiny_data, tiny_model

from coarlib.errors import HistoryError
from coarlib.history import History, open_run, record, recorder
from coarlib.path_kernel import explain


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("run", [ADAM, SGD], ids=["adamw", "sgd"])
def test_killed_at_random_moments_and_resumed_is_as_if_never_killed(
    tmp_path, monkeypatch, run, every
):
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 0.01)
    (tmp_path / "whole").mkdir()
    model = train(tmp_path / "whole", run, every)
    wanted = explained(tmp_path / "whole", model)
    random = np.random.default_rng(every)
    folder = tmp_path / "killed"
    folder.mkdir()
    kills = 0
    for _ in range(12):
        child = in_child(lambda: train(folder, run, every, pause=0.01))
        kills += kill(child, random.uniform(0.02, 0.2))
    assert kills > 3
    again = train(folder, run, every)
    found = explained(folder, again)
    assert History(folder / "h").num_updates == UPDATES
    for name, values in wanted.arrays.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("every", [1, 4])
def test_sigterm_flushes_and_then_ends_the_process(tmp_path, every):
    child = in_child(lambda: train(tmp_path, ADAM, every, checkpoint_every=99, kill_at=10))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGTERM
    history = History(tmp_path / "h")
    assert history.commit.step == 10
    assert history.reached == 10


def test_a_handler_of_the_user_is_called_after_the_flush(tmp_path):
    seen = []

    def note(number, frame):
        seen.append(History(tmp_path / "h").reached)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        train(tmp_path, ADAM, 1, kill_at=7)
        assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [7]
    assert History(tmp_path / "h").num_updates == UPDATES


def stopped_at(folder, step, run=ADAM, every=1, flush_at=None):
    """States of model and optimizer before ``step`` updates, of a run killed right there."""
    model = tiny_model()
    optimizer = run.build(model)
    inputs, targets = tiny_data()[0]
    options = {"num_steps": UPDATES, "max_batch": 4, "every": every, "quiet": True}
    recording = record(
        model, optimizer, folder / "h", samples=(inputs, targets), loss=LOSS, **options
    )
    history = recording.__enter__()
    for number in range(step):
        if number == flush_at:
            history.flush()
        batch = BATCHES[number % len(BATCHES)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        history.batch(batch)
        optimizer.step()
    recording._stack.close()  # as a kill would: nothing more is written
    recording._state_rows.drain()
    recording._step_rows.drain()
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def go_on(folder, states, run=ADAM, optimizer_too=True, every=1):
    model = tiny_model(seed=7)
    optimizer = run.build(model)
    model.load_state_dict(states[0])
    if optimizer_too:
        optimizer.load_state_dict(states[1])
    options = {"num_steps": UPDATES, "max_batch": 4, "every": every, "quiet": True}
    return record(model, optimizer, folder / "h", samples=tiny_data()[0], loss=LOSS, **options)


def test_a_checkpoint_beyond_the_last_flush_is_refused(tmp_path):
    states = stopped_at(tmp_path, 9, flush_at=4)
    with pytest.raises(HistoryError, match=r"none of them|before update 9.*surely holds only"):
        go_on(tmp_path, states)


def test_killed_before_the_first_flush_starts_again_or_refuses(tmp_path):
    states = stopped_at(tmp_path, 3)
    with pytest.raises(HistoryError, match="holds the updates before 0"):
        go_on(tmp_path, states)
    with pytest.raises(HistoryError, match="holds no whole update yet"):
        open_run(tmp_path / "h", tiny_model(), LOSS, tiny_data()[0])
    fresh = tiny_model()
    optimizer = ADAM.build(fresh)
    assert go_on(tmp_path, (fresh.state_dict(), optimizer.state_dict())).step == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("run", [ADAM, SGD], ids=["adamw", "sgd"])
def test_a_resume_without_the_optimizers_state_is_refused(tmp_path, run, every):
    states = stopped_at(tmp_path, 6, run, every, flush_at=5)
    model, optimizer = tiny_model(), None
    inputs, targets = tiny_data()[0]
    optimizer = run.build(model)
    for number in range(5):  # to the flushed update
        batch = BATCHES[number % len(BATCHES)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(HistoryError, match="restore the optimizer's state_dict"):
        go_on(tmp_path, states, run, optimizer_too=False, every=every)
    halved = copy.deepcopy(states)
    for state in halved[1]["state"].values():
        state[{"AdamW": "exp_avg", "SGD": "momentum_buffer"}[run.optimizer]].mul_(0.5)
    with pytest.raises(HistoryError, match="restore the optimizer's state_dict"):
        go_on(tmp_path, halved, run, every=every)
    assert go_on(tmp_path, states, run, every=every).step == 5


def test_going_back_forgets_what_came_after(tmp_path):
    """Ended at update 7, resumed at 4 with other batches, killed: nothing old is mixed in."""
    train(tmp_path, ADAM, 2, checkpoint_every=4, stop_at=7)
    assert History(tmp_path / "h").num_updates == 7
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with go_on(tmp_path, states, every=2):
        pass
    assert History(tmp_path / "h").num_updates == 4


def test_tied_weights_are_recorded_and_explained(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(torch.tanh(self.embedding(tokens).sum(1)))

    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (12, 3))
    data, points = (tokens[:10], tokens[:10, 0]), (tokens[10:], tokens[10:, 0])
    model = Tied().double()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    options = {"num_steps": 4, "max_batch": 5, "quiet": True, "every": 2}
    with record(model, optimizer, tmp_path / "h", samples=data, loss=LOSS, **options) as history:
        for step in range(4):
            batch = list(range(5 * (step % 2), 5 * (step % 2) + 5))
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
            history.batch(batch)
            optimizer.step()
    found = explain(open_run(tmp_path / "h", Tied().double(), LOSS, data), *points, quiet=True)
    np.testing.assert_allclose(found["final"], model(points[0]).detach(), rtol=0, atol=1e-12)
    assert found.verdict().share < 1e-5

"""A recorded training with checkpoints of the user's own, in processes that may be killed."""

import os
import signal
import time

import torch
from torch.nn import functional as F
from zoo.recorded_runs import BATCHES, Run, tiny_data, tiny_model

from coarlib.history import TrainingLoss, open_run, record
from coarlib.path_kernel import explain

LOSS = TrainingLoss(F.cross_entropy)
UPDATES = 24
ADAM, SGD = Run("AdamW", {"lr": 0.05}), Run("SGD", {"lr": 0.3, "momentum": 0.7, "nesterov": True})


def train(folder, run, every, checkpoint_every=5, pause=0.0, stop_at=UPDATES, kill_at=None):
    """Train with checkpoints, going on from the last one that is there; returns the model."""
    model = tiny_model()
    optimizer = run.build(model)
    file = folder / "checkpoint.pt"
    if file.exists():
        model_state, optimizer_state = torch.load(file, weights_only=True)
        model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
    inputs, targets = tiny_data()[0]
    options = {"num_steps": UPDATES, "max_batch": 4, "every": every, "quiet": True}
    with record(
        model, optimizer, folder / "h", samples=(inputs, targets), loss=LOSS, **options
    ) as history:
        for step in range(history.step, stop_at):
            batch = BATCHES[step % len(BATCHES)]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            history.batch(batch)
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            optimizer.step()
            time.sleep(pause)
            if (step + 1) % checkpoint_every == 0:
                history.flush()
                torch.save((model.state_dict(), optimizer.state_dict()), folder / "draft.pt")
                os.replace(folder / "draft.pt", file)
    return model


def in_child(act):
    """Run ``act`` in a process of its own; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        act()
        code = 0
    finally:
        os._exit(code)


def kill(child, after):
    """Kill a process after so many seconds, with SIGKILL; whether it was still running."""
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def explained(folder, model):
    """Explain a recorded run's test outputs."""
    data, points = tiny_data()
    run = open_run(folder / "h", model, LOSS, data)
    by = ["sample", ("tensor", "step")]
    return explain(run, *points, by=by, quiet=True)

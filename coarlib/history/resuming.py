"""Where a recording goes on, and whether the model is the one that was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
import xxhash
from torch import nn

from coarlib.errors import HistoryError, nearest
from coarlib.history.parameters import ParameterTable
from coarlib.history.reading import History, digest_of
from coarlib.history.settings import STORAGE


def select(table: ParameterTable, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the tensors whose names match one of ``patterns`` (``*`` and ``?``).

    Raises
    ------
    HistoryError
        If a pattern matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in table.names if fnmatchcase(name, pattern)}
        if not found:
            raise HistoryError(
                f"no trained parameter is called {pattern}{nearest(pattern, table.names)}"
            )
        chosen |= found
    return tuple(name for name in table.names if name in chosen)


def frozen_digest(model: nn.Module, table: ParameterTable) -> str:
    """Digest everything in the model's state that is not trained (buffers, frozen parameters)."""
    digest = xxhash.xxh3_64()
    trained = set(table.names)
    for name, tensor in sorted(model.state_dict().items()):
        if name not in trained:
            digest.update(name.encode())
            values = tensor.detach().cpu().contiguous()
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_step(history: History, parameters: Sequence[torch.Tensor]) -> int:
    """Return the update that the parameters stand before, by their digest.

    Raises
    ------
    HistoryError
        If they are those of no recorded step.
    """
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).cpu()
    done = history.steps.completed_rows()
    same = done[history.steps.array("digest")[done] == digest_of(theta)]
    if len(same):
        return int(same[0]) + history.first
    state = history.state(history.last)
    if state is not None:
        stored = theta.to(STORAGE[history.settings.storage])
        if digest_of(stored) == digest_of(state.theta):
            return history.last
    if not len(done) and state is None:
        return 0
    raise HistoryError(
        f"{history.path} holds updates {history.first} to {history.last - 1}, but the model's "
        "parameters are those of none of them; restore the checkpoint of one of these updates, or "
        "record to another path"
    )


def restore(history: History, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put model and optimizer into the last state that is kept whole; returns its step.

    Needs a history with momentum (``record(…, keep_momentum=True)`` or ``every > 1``). The
    hyperparameters of a schedule are the user's own to restore.

    Raises
    ------
    HistoryError
        If the history keeps no momentum, or second moments of some tensors only.
    """
    settings = history.settings
    state = history.state(history.last)
    if state is None:
        raise HistoryError(f"{history.path} holds no state to go on from")
    tracked = settings.every > 1 or settings.tracked == settings.table.names
    if state.momentum is None or not tracked:
        raise HistoryError(
            f"{history.path} keeps no whole optimizer state; restore your own checkpoint, or "
            "record with keep_momentum=True"
        )
    counts = _counts_at(history)
    named = dict(model.named_parameters())
    theta, momentum = settings.table.views(state.theta), settings.table.views(state.momentum)
    second = None if state.second_moment is None else settings.table.views(state.second_moment)
    for name, count in zip(settings.table.names, counts, strict=True):
        parameter = named[name]
        with torch.no_grad():
            parameter.copy_(theta[name])
        if count == 0:
            continue
        entry = {settings.kind.momentum_key: momentum[name].to(parameter)}
        if second is not None:
            entry["exp_avg_sq"] = second[name].to(parameter)
            entry["step"] = torch.tensor(float(count))
        optimizer.state[parameter].update(entry)
    return history.last


def _counts_at(history: History) -> list[int]:
    """Updates of each tensor before the history's last state."""
    counts = [0] * len(history.settings.table.names)
    for step in range(history.last - 1, history.first - 1, -1):
        found = history.record(step).counts
        counts = [
            int(f) + 1 if c == 0 and f >= 0 else c for c, f in zip(counts, found, strict=True)
        ]
        if all(counts):
            break
    return counts

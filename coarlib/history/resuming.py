"""Where a recording goes on, and whether the model is the one that was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
import xxhash
from torch import nn

from coarlib.errors import HistoryError, nearest
from coarlib.history.commit import optimizer_digest
from coarlib.history.optimizers import INACTIVE
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
    named = dict(model.named_parameters())
    trained = {id(named[name]) for name in table.names}  # a tied parameter has several names
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in trained:
            digest.update(name.encode())
            values = tensor.detach().cpu().contiguous()
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_step(
    history: History, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]
) -> int:
    """Return the update that model and optimizer stand before.

    Parameters
    ----------
    history : History
    optimizer : torch.optim.Optimizer
    parameters : sequence of tensors
        All that are trained, in the order of the table.

    Raises
    ------
    HistoryError
        If the parameters are those of no update that is surely on disk, or the optimizer's state
        is not the one that goes with them.
    """
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).cpu()
    digest, commit = digest_of(theta), history.commit
    done = history.steps.completed_rows()
    rows = done[history.steps.array("digest")[done] == digest]
    found = [int(row) + history.first for row in rows]
    if commit is None and not len(done):
        return 0
    ahead = [step for step in found if commit is not None and step > commit.step]
    found = [step for step in found if step not in ahead]
    if commit is not None and commit.digest == digest:
        found = [*(step for step in found if step != commit.step), commit.step]
    state = history.state(history.last)
    if commit is None and state is not None:  # recorded by an older coarlib
        stored = theta.to(STORAGE[history.settings.storage])
        found += [history.last] * (digest_of(stored) == digest_of(state.theta))
    reasons = [_misfit(history, step, optimizer, parameters) for step in found]
    fitting = [step for step, reason in zip(found, reasons, strict=True) if reason is None]
    if fitting:
        return fitting[-1]
    if found:
        raise HistoryError(
            f"the model's parameters are those before update {found[-1]} of {history.path}, but "
            f"{reasons[-1]}; restore the optimizer's state_dict from the same checkpoint"
        )
    if ahead and commit is not None:
        raise HistoryError(
            f"the model stands before update {ahead[0]}, but {history.path} surely holds only "
            f"updates before {commit.step}; restore an earlier checkpoint, or record to another "
            "path (and call history.flush() before saving a checkpoint)"
        )
    raise HistoryError(
        f"{history.path} holds the updates before {history.reached}, but the model's parameters "
        "are those of none of them; restore the checkpoint of one of these updates (one that was "
        "saved after history.flush()), or record to another path"
    )


def _misfit(
    history: History,
    step: int,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
) -> str | None:
    """Say why the optimizer's state is not that before update ``step``; None if it may be."""
    settings, commit = history.settings, history.commit
    kind = settings.kind
    wanted = counts_before(history, step)
    states = [optimizer.state.get(p, {}) for p in parameters]
    if wanted is not None and kind.adaptive:
        counts = [int(state.get("step", 0)) for state in states]
        if any(count != want for count, want in zip(counts, wanted, strict=True) if want):
            return f"the optimizer has made {max(counts)} updates, not {max(wanted)}"
    groups = [optimizer.param_groups[group] for group in settings.table.groups]
    if wanted is not None and not kind.adaptive:
        for name, group, count, state in zip(
            settings.table.names, groups, wanted, states, strict=True
        ):
            if group["momentum"] and count and state.get("momentum_buffer") is None:
                return f"the optimizer holds no momentum of {name}"
    other = "the optimizer's state is not the one that it had then"
    if commit is not None and commit.step == step:
        same = commit.optimizer == optimizer_digest(optimizer, kind, parameters)
        return None if same else other
    kept = history.state(step)
    if kept is None:
        return None
    for key, row in (("exp_avg_sq", kept.second_moment), (kind.momentum_key, kept.momentum)):
        if row is None:
            continue
        whole = len(row) == settings.table.total
        table = settings.table if whole else settings.table.subset(settings.tracked)
        views = table.views(row)
        for name, state in zip(settings.table.names, states, strict=True):
            own = state.get(key)
            if name in views and not torch.equal(
                views[name],
                torch.zeros_like(views[name]) if own is None else own.detach().cpu().to(row.dtype),
            ):
                return other
    return None


def counts_before(history: History, step: int) -> list[int] | None:
    """Return each tensor's updates before update ``step``; None where no row tells."""
    last = min(step, history.settings.stop) - history.first
    if last <= 0:
        return None
    rows = np.asarray(history.steps.array("counts")[:last])
    active = rows != INACTIVE
    latest = last - 1 - np.argmax(active[::-1], 0)
    counts = np.where(active.any(0), rows[latest, np.arange(rows.shape[1])] + 1, 0)
    after = step - history.settings.stop  # updates behind a window are not recorded
    return None if after > 0 else [int(count) for count in counts]


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
    if settings.storage != settings.dtype:
        raise HistoryError(
            f"the states of {history.path} are rounded to {settings.storage}; restore your own "
            "checkpoint"
        )
    tracked = settings.every > 1 or settings.tracked == settings.table.names
    if state.momentum is None or not tracked:
        raise HistoryError(
            f"{history.path} keeps no whole optimizer state; restore your own checkpoint, or "
            "record with keep_momentum=True"
        )
    counts = counts_before(history, history.last) or [0] * len(settings.table.names)
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

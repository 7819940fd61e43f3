"""A recorded history together with the model, loss and samples it was recorded with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from coarlib.errors import HistoryError, first_line
from coarlib.history.inputs import Inputs, as_inputs, each
from coarlib.history.reading import AnyHistory, History
from coarlib.history.replay import Replay
from coarlib.history.resuming import frozen_digest
from coarlib.history.training import Samples, TrainingLoss, random_or_coupled
from coarlib.history.walk import Walk
from coarlib.identity import Identity


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run, ready to be explained; built by :func:`open_run`.

    Attributes
    ----------
    walk : Walk
    model : nn.Module
        A copy on the walk's device and in its dtype.
    loss : TrainingLoss
    samples : Samples
    """

    walk: Walk
    model: nn.Module
    loss: TrainingLoss
    samples: Samples

    def identity(self) -> dict[str, str]:
        """Digest what explanations of this run depend on, each part by name."""
        code = Identity()
        for name, module in self.model.named_modules():
            code.add(name, type(module).__qualname__, module.extra_repr())
            code.add_method(module, "forward")
        loss = Identity().add(self.loss.function, self.loss.reduction, self.loss.regulariser)
        if self.loss.autocast is not None:
            loss.add(str(self.loss.autocast))
        settings = self.walk.history.settings
        return {
            "history": self.walk.history.content(),
            "model": code.hexdigest(),
            "frozen parameters": frozen_digest(self.model, settings.table),
            "loss": loss.hexdigest(),
            "training samples": self.samples.digest(whole=True),
            "dtype": str(self.walk.dtype),
        }

    def require_finite(self) -> None:
        """Raise HistoryError if training diverged: then nothing adds up to what the model says."""
        if not torch.isfinite(self.walk.flat(self.walk.history.last)).all():
            raise HistoryError(
                "the recorded run ends with parameters that are not finite (training diverged), so "
                "no outputs can be explained; record a run, or a window, that stays finite"
            )

    def put(self, inputs: Inputs) -> Any:
        """Move tensors to the walk's device, numbers with a fraction to its dtype."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            dtype = self.walk.dtype if tensor.is_floating_point() else None
            return tensor.to(self.walk.device, dtype).contiguous()

        return each(move, as_inputs(inputs))


def open_run(
    history: AnyHistory | str | Path,
    model: nn.Module,
    loss: TrainingLoss,
    samples: Samples | Sequence[Any] | Dataset[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    replay_tolerance: float = 0.0,
) -> RecordedRun:
    """Put a history together with the model, loss and data it was recorded with.

    Parameters
    ----------
    history : path of a recorded history, or a history
    model : nn.Module
        Its trained parameters do not matter; buffers and frozen parameters do.
    loss, samples
        As given to :func:`coarlib.history.record`.
    device, dtype
        To compute on and in; those of the model by default.
    replay_tolerance : float
        See :class:`coarlib.history.replay.Replay`.

    Raises
    ------
    HistoryError
        If model or samples are not those of the history.
    """
    if isinstance(history, str | Path):
        history = History(history)
        history.verify()
        if not history.num_updates:
            raise HistoryError(f"{history.path} holds no whole update yet; go on recording it")
    samples = samples if isinstance(samples, Samples) else Samples(samples)
    settings = history.settings
    some = next(model.parameters())
    named = dict(model.named_parameters())
    for name, shape in zip(settings.table.names, settings.table.shapes, strict=True):
        if name not in named or tuple(named[name].shape) != shape:
            raise HistoryError(f"the model has no parameter {name} of shape {list(shape)}")
    if settings.frozen_digest and settings.frozen_digest != frozen_digest(model, settings.table):
        raise HistoryError(
            "buffers or frozen parameters of the model are not those it was recorded with"
        )
    if settings.data_digest and settings.data_digest != samples.digest():
        raise HistoryError("these are not the training samples that the history was recorded with")
    replay = Replay(model, loss, samples, replay_tolerance) if settings.every > 1 else None
    place = torch.device(device) if device is not None else some.device
    walk = Walk(history, place, dtype or some.dtype, replay)
    try:
        moved = copy.deepcopy(model).to(walk.device, walk.dtype).requires_grad_(False)
    except RuntimeError as error:
        raise HistoryError(
            f"the model cannot be copied ({first_line(error)}); build it without tensors "
            "that are computed before it is called, and without torch.jit"
        ) from error
    for _, module, _ in random_or_coupled(moved):
        module.eval()  # recording refused them in training mode
    return RecordedRun(walk, moved, loss, samples)

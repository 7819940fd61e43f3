"""ExPLAIND's wrappers of a model, an optimizer and a data loader, which log while training.

Imported by :mod:`coarlib.interop.explaind`, which says what differs from the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coarlib.errors import HistoryError
from coarlib.files import for_file
from coarlib.history.optimizers import HYPER, SECOND_MOMENT_KEY, OptimizerKind
from coarlib.history.parameters import ParameterTable
from coarlib.history.training import random_or_coupled, refuse_inexact
from coarlib.loading import load_pt


class ModelPath(nn.Module):
    """A model that keeps its parameters when :meth:`log_checkpoint` is called.

    Unknown keyword arguments of the original are accepted and have no effect.
    """

    def __init__(
        self,
        model: nn.Module,
        device: Any = "cpu",
        checkpoints: Sequence[dict[str, torch.Tensor]] | None = None,
        checkpoint_path: str | Path | None = None,
        overwrite: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__()
        refuse_inexact(random_or_coupled(model))
        self.model, self.device, self.checkpoint_path = model.to(device), device, checkpoint_path
        self.checkpoints = [] if checkpoints is None else list(checkpoints)
        if not self.checkpoints and not overwrite and _exists(checkpoint_path):
            self.load_checkpoints()
        if not self.checkpoints:
            self.log_checkpoint()

    def forward(self, x: torch.Tensor, step: int | None = None) -> torch.Tensor:
        """Run the model, at the parameters of checkpoint ``step`` if given (and leave them)."""
        if step is not None:
            self.model.load_state_dict(self.checkpoints[step], strict=False)
        outputs: torch.Tensor = self.model(x.to(self.device))
        return outputs

    def log_checkpoint(self) -> None:
        """Keep the parameters as they are now."""
        refuse_inexact(random_or_coupled(self.model))
        named = self.model.named_parameters()
        self.checkpoints.append({name: p.detach().cpu().clone() for name, p in named})

    def save_checkpoints(self) -> None:
        """Write the checkpoints to ``checkpoint_path``."""
        _save(self.checkpoints, self.checkpoint_path)

    def load_checkpoints(self) -> None:
        """Read them back; explaind 0.0.2 writes the same."""
        named = {name: p.shape for name, p in self.model.named_parameters()}
        self.checkpoints = _load(self.checkpoint_path)
        for entry in self.checkpoints:
            tensors = entry if isinstance(entry, dict) else {}
            for name, shape in named.items():
                if getattr(tensors.get(name), "shape", None) != shape:
                    raise HistoryError(
                        f"{self.checkpoint_path} holds no checkpoints of this model: {name} of "
                        f"shape {list(shape)} is not in each of them"
                    )


class OptimizerPath:
    """An optimizer of torch with a log of what each update used."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: ModelPath,
        checkpoint_path: str | Path | None,
        overwrite: bool,
    ) -> None:
        self.optimizer, self.model, self.checkpoint_path = optimizer, model, checkpoint_path
        self.kind = OptimizerKind.of(optimizer)
        self.table = ParameterTable.of(inner_model(model), optimizer)
        named = dict(inner_model(model).named_parameters())
        self._parameters = [named[name] for name in self.table.names]
        self.checkpoints: list[dict[str, torch.Tensor]] = []
        self._hyper = np.array(self.kind.hyperparameters(optimizer))
        if not overwrite and _exists(checkpoint_path):
            self.load_checkpoints()
        optimizer.register_step_pre_hook(self._note)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer."""
        return self.optimizer.param_groups

    def _note(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._hyper = np.array(self.kind.hyperparameters(self.optimizer))

    def step(self, closure: None = None) -> None:
        """Update the parameters."""
        if closure is not None:
            raise HistoryError("optimizer.step(closure) cannot be recorded; call backward before")
        self.optimizer.step()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the torch optimizer's state."""
        return self.optimizer.state_dict()

    def log_checkpoint(self) -> None:
        """Keep what the last update used; call it after every :meth:`step`."""
        entry = {"hyper": torch.from_numpy(self._hyper.copy())}
        if self.kind.adaptive:
            states = [self.optimizer.state[p][SECOND_MOMENT_KEY] for p in self._parameters]
            entry["second_moment"] = torch.cat([s.detach().cpu().reshape(-1) for s in states])
        self.checkpoints.append(entry)

    def save_checkpoints(self) -> None:
        """Write the checkpoints to ``checkpoint_path``."""
        _save(self.checkpoints, self.checkpoint_path)

    def load_checkpoints(self) -> None:
        """Read them back, also those that explaind 0.0.2 wrote."""
        found = _load(self.checkpoint_path)
        if not all(isinstance(entry, dict) for entry in found):
            raise HistoryError(f"{self.checkpoint_path} holds no log of an optimizer")
        if all("hyper" in entry for entry in found):
            self.checkpoints = found
            return
        if self.kind.adaptive:  # explaind's first entry is the state before training
            found = found[1:]
        self.checkpoints = [self._of_explaind(entry) for entry in found]

    def _of_explaind(self, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Translate an entry of explaind: second moments by name, rates where they were tracked."""
        hyper = self._hyper.copy()
        for key in ("lr", "weight_decay"):
            if entry.get(key) is not None:
                hyper[:, HYPER.index(key)] = entry[key]
        mine = {"hyper": torch.from_numpy(hyper)}
        if not self.kind.adaptive:
            return mine
        moments, flat = entry.get(SECOND_MOMENT_KEY, {}), []
        for name, parameter in zip(self.table.names, self._parameters, strict=True):
            moment = moments.get(name, moments.get(f"model.{name}"))
            if moment is None or moment.shape != parameter.shape:
                raise HistoryError(
                    f"{self.checkpoint_path} was written by explaind and holds no second moment "
                    f"of {name} of shape {list(parameter.shape)}; train again with coarlib"
                )
            flat.append(moment.detach().to(parameter.dtype).reshape(-1))
        return {**mine, "second_moment": torch.cat(flat)}


class AdamWOptimizerPath(OptimizerPath):
    """AdamW with a history; amsgrad is refused."""

    def __init__(  # noqa: PLR0917 - the original's signature
        self,
        model: ModelPath,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        amsgrad: bool = False,
        checkpoint_path: str | Path | None = None,
        overwrite: bool = False,
        **ignored: Any,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        made = torch.optim.AdamW(model.parameters(), amsgrad=amsgrad, **options)  # type: ignore[arg-type]
        super().__init__(made, model, checkpoint_path, overwrite)


class SGDOptimizerPath(OptimizerPath):
    """SGD with momentum, dampening, Nesterov and L2 decay, with a history."""

    def __init__(  # noqa: PLR0917 - the original's signature
        self,
        model: ModelPath,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        checkpoint_path: str | Path | None = None,
        overwrite: bool = False,
        **ignored: Any,
    ) -> None:
        made = torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        super().__init__(made, model, checkpoint_path, overwrite)


class _Numbered(torch.utils.data.Dataset[Any]):
    """A dataset whose targets carry their sample's number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, tuple[Any, int]]:
        item, target = self.dataset[index]
        return item, (target, index)


class DataPath:
    """Numbers the samples of a loader and logs the batches that :meth:`get_batch` gives.

    The user's dataset is not changed; ``dataloader`` is a loader over a numbered view of it.
    """

    def __init__(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        checkpoint_path: str | Path | None = None,
        full_batch: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.dataset, self.checkpoint_path = dataloader.dataset, checkpoint_path
        self.full_batch = full_batch
        self.dataloader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            _Numbered(dataloader.dataset),
            batch_sampler=dataloader.batch_sampler,
            num_workers=dataloader.num_workers,
        )
        self.checkpoints: list[torch.Tensor] = []
        if not overwrite and _exists(checkpoint_path):
            self.load_checkpoints()

    def get_batch(
        self, batch: Any, target_type: str = "int", log: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``inputs, targets`` of a batch and log its sample numbers."""
        inputs, (targets, numbers) = batch
        if log:
            self.checkpoints.append(numbers.clone())
        return inputs, targets.long() if target_type == "int" else targets.float()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.dataloader:
            yield self.get_batch(batch)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def save_checkpoints(self) -> None:
        """Write the batches' sample numbers to ``checkpoint_path``."""
        _save(self.checkpoints, self.checkpoint_path)

    def load_checkpoints(self) -> None:
        """Read them back, also those of explaind 0.0.2, which hold the samples too."""
        count = len(self.dataset)  # type: ignore[arg-type]
        entries: list[Any] = _load(self.checkpoint_path)
        found: list[Any] = [e.get("indices") if isinstance(e, dict) else e for e in entries]
        for numbers in found:
            whole = isinstance(numbers, torch.Tensor) and not numbers.is_floating_point()
            if not whole or bool(((numbers < 0) | (numbers >= count)).any()):
                raise HistoryError(
                    f"{self.checkpoint_path} holds no batches of sample numbers of this data set"
                )
        self.checkpoints = found


def inner_model(model: ModelPath | nn.Module) -> nn.Module:
    """Return the model inside a path."""
    return model.model if isinstance(model, ModelPath) else model


def _exists(path: str | Path | None) -> bool:
    return path is not None and Path(path).is_file()


def _save(content: Any, path: str | Path | None) -> None:
    if path is None:
        raise HistoryError("save_checkpoints() needs a checkpoint_path")
    torch.save(content, for_file(path))


def _load(path: str | Path | None) -> list[Any]:
    if path is None:
        raise HistoryError("load_checkpoints() needs a checkpoint_path")
    return list(load_pt(path, HistoryError))

"""ExPLAIND's class names (explaind 0.0.2), so that its training loops run with one changed import.

::

    from coarlib.interop.explaind import (
        AdamWOptimizerPath, DataPath, ExactPathKernelModel, ModelPath,
        RegularizedCrossEntropyLoss, SGDOptimizerPath,
    )

The history is kept in memory while training and saved as tensors (``weights_only=True`` opens the
files). What differs from the original, on purpose: batches are kept as sample numbers; learning
rates and weight decay are always tracked; ``forward`` leaves the training mode alone; ragged
batches, momentum options and loss regularisers are exact; :meth:`ExactPathKernelModel.predict`
counts weight decay once. For long runs use :func:`coarlib.path_kernel.record`, which keeps rows
on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coarlib.errors import HistoryError
from coarlib.path_kernel import NormRegulariser, Samples, TrainingLoss, explain, subject
from coarlib.path_kernel.history import Settings, State, StepRecord
from coarlib.path_kernel.optimizers import SECOND_MOMENT_KEY, OptimizerKind
from coarlib.path_kernel.parameters import ParameterTable
from coarlib.path_kernel.training import random_or_coupled, refuse_inexact

__all__ = [
    "AdamWOptimizerPath",
    "DataPath",
    "ExactPathKernelModel",
    "ModelPath",
    "RegularizedCrossEntropyLoss",
    "SGDOptimizerPath",
]


class RegularizedCrossEntropyLoss(nn.Module):
    """Negative log-likelihood of log-probabilities plus ``alpha`` times the sum of p-norms."""

    def __init__(self, alpha: float = 0.1, p: float = 2.0, device: Any = "cpu") -> None:
        super().__init__()
        self.alpha, self.p = alpha, p

    def forward(
        self,
        output: torch.Tensor,
        target: torch.Tensor,
        params: Iterable[torch.Tensor] = (),
        output_reg: bool = False,
    ) -> Any:
        """Return the loss, with ``output_reg`` also the norm (unscaled)."""
        loss = nn.functional.nll_loss(output, target)
        norm = torch.zeros((), device=output.device)
        for parameter in params:
            norm = norm + torch.norm(parameter, p=self.p)
        value = loss + self.alpha * norm if self.alpha else loss
        return (value, norm) if output_reg else value

    def training_loss(self) -> TrainingLoss:
        """Return the same objective for :mod:`coarlib.path_kernel`."""
        penalty = NormRegulariser(self.alpha, self.p) if self.alpha else None
        return TrainingLoss(nn.functional.nll_loss, "mean", penalty)


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
        """Read them back."""
        self.checkpoints = _load(self.checkpoint_path)


class _OptimizerPath:
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
        self.table = ParameterTable.of(_inner(model), optimizer)
        named = dict(_inner(model).named_parameters())
        self._parameters = [named[name] for name in self.table.names]
        self.checkpoints: list[dict[str, torch.Tensor]] = []
        if not overwrite and _exists(checkpoint_path):
            self.checkpoints = _load(checkpoint_path)
        self._hyper = self.kind.hyperparameters(optimizer)
        optimizer.register_step_pre_hook(self._note)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer."""
        return self.optimizer.param_groups

    def _note(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._hyper = self.kind.hyperparameters(self.optimizer)

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
        """Read them back."""
        self.checkpoints = _load(self.checkpoint_path)


class AdamWOptimizerPath(_OptimizerPath):
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


class SGDOptimizerPath(_OptimizerPath):
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
            self.checkpoints = _load(checkpoint_path)

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
        """Read them back."""
        self.checkpoints = _load(self.checkpoint_path)


class _Memory:
    """The three logs as one history."""

    def __init__(self, model: ModelPath, optimizer: _OptimizerPath, data: DataPath) -> None:
        steps = (len(model.checkpoints) - 1, len(optimizer.checkpoints), len(data.checkpoints))
        if len(set(steps)) > 1:
            raise HistoryError(
                f"the logs do not fit together: {steps[0]} updates of the model, {steps[1]} of the "
                f"optimizer, {steps[2]} batches; call both log_checkpoint() after every step"
            )
        self.first, self.last = 0, steps[0]
        self._model, self._optimizer, self._data = model, optimizer, data
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.settings = Settings(
            kind=optimizer.kind,
            table=optimizer.table,
            tracked=optimizer.table.names,
            start=0,
            stop=self.last,
            num_steps=self.last,
            every=1,
            storage=dtype,
            keep_momentum=False,
            max_batch=max(map(len, data.checkpoints), default=1),
            weighted=False,
            num_samples=len(data.dataset),  # type: ignore[arg-type]
            data_digest="",
            frozen_digest="",
        )

    def record(self, step: int) -> StepRecord:
        """Return update ``step``."""
        numbers = self._data.checkpoints[step].numpy().astype(np.int64)
        count = len(self.settings.table.names)
        return StepRecord(
            step,
            numbers,
            np.full(len(numbers), 1 / len(numbers)),
            self._optimizer.checkpoints[step]["hyper"].numpy(),
            np.full(count, step, np.int32),
            np.ones(count),
            0,
        )

    def state(self, step: int) -> State:
        """Return the state before update ``step``."""
        theta = self.settings.table.flatten(self._model.checkpoints[step])
        if not self.settings.kind.adaptive:
            return State(theta)
        if step == 0:
            return State(theta, torch.zeros_like(theta))
        return State(theta, self._optimizer.checkpoints[step - 1]["second_moment"])


class ExactPathKernelModel:
    """Decomposes predictions; arguments of the original that tune its loops have no effect.

    ``integral_eps`` is read as the reciprocal of a number of nodes in the original; here the
    quadrature is adaptive and ``tolerance`` its largest error of any output in one update.
    """

    def __init__(  # noqa: PLR0917 - the original's signature
        self,
        model: ModelPath,
        optimizer: _OptimizerPath,
        loss_fn: RegularizedCrossEntropyLoss | nn.Module,
        data_path: DataPath,
        integral_eps: float = 0.1,
        tolerance: float | None = None,
        evaluate_predictions: bool = True,
        keep_param_wise_kernel: bool = False,
        **ignored: Any,
    ) -> None:
        if isinstance(loss_fn, RegularizedCrossEntropyLoss):
            loss = loss_fn.training_loss()
        elif isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
            loss = TrainingLoss(loss_fn, loss_fn.reduction)
        else:
            raise HistoryError(
                f"{type(loss_fn).__name__} is not a loss of ExPLAIND; use coarlib.path_kernel"
            )
        history = _Memory(model, optimizer, data_path)
        self._subject = subject(history, _inner(model), loss, Samples(data_path.dataset))
        self._tolerance, self._tensors = tolerance, keep_param_wise_kernel

    def predict(
        self,
        X_test: torch.Tensor,
        y_test: torch.Tensor | None = None,
        is_train: bool = False,
        keep_kernel_matrices: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor] | None, torch.Tensor, Any]:
        """Decompose all outputs of the trained model on ``X_test``.

        Returns
        -------
        prediction, initial : [N, C]
        kernel : {tensor name: [N, 1, C, D]} or None
            Contributions by training sample (the original's are to be negated and divided by the
            batch size; these sum to the data's part of the prediction). One entry ``"all"``
            unless ``keep_param_wise_kernel``.
        regularisation : [N, C]
        evaluation : dict
            Residuals, and ``param_kernel`` where tensors are kept.
        """
        targets = torch.zeros(len(X_test), dtype=torch.int64) if y_test is None else y_test
        by: list[Any] = [("sample", "tensor") if self._tensors else "sample"]
        found = explain(
            self._subject,
            X_test,
            targets,
            by=by if keep_kernel_matrices else ["step"],
            tolerance=self._tolerance,
            quiet=True,
        )
        if found is None:
            raise HistoryError("the explanation is unfinished")
        kernel = None
        if keep_kernel_matrices and self._tensors:
            values = torch.from_numpy(np.asarray(found.by("sample", "tensor")))
            names = found.about["tensors"]
            kernel = {name: values[..., k].unsqueeze(1) for k, name in enumerate(names)}
        elif keep_kernel_matrices:
            kernel = {"all": torch.from_numpy(np.asarray(found.by("sample"))).unsqueeze(1)}
        regularisation = found["weight_decay"] + found["regulariser"]
        return (
            torch.from_numpy(found.prediction),
            torch.from_numpy(np.asarray(found["initial"])),
            kernel,
            torch.from_numpy(regularisation),
            {**found.checks(), "final": np.asarray(found["final"])},
        )


def _inner(model: ModelPath | nn.Module) -> nn.Module:
    return model.model if isinstance(model, ModelPath) else model


def _exists(path: str | Path | None) -> bool:
    return path is not None and Path(path).is_file()


def _save(content: Any, path: str | Path | None) -> None:
    if path is None:
        raise HistoryError("save_checkpoints() needs a checkpoint_path")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def _load(path: str | Path | None) -> list[Any]:
    if path is None:
        raise HistoryError("load_checkpoints() needs a checkpoint_path")
    return list(torch.load(path, weights_only=True))

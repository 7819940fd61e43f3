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
counts weight decay once. For long runs use :func:`coarlib.history.record`, which keeps rows
on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from coarlib.errors import HistoryError
from coarlib.history import NormRegulariser, Samples, TrainingLoss, open_run
from coarlib.history.reading import State, StepRecord
from coarlib.history.settings import Settings
from coarlib.identity import Identity
from coarlib.interop.explaind_paths import (
    AdamWOptimizerPath,
    DataPath,
    ModelPath,
    OptimizerPath,
    SGDOptimizerPath,
    inner_model,
)
from coarlib.path_kernel import explain

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


class _Memory:
    """The three logs as one history."""

    def __init__(self, model: ModelPath, optimizer: OptimizerPath, data: DataPath) -> None:
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
            dtype=dtype,
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

    def ends(self) -> tuple[None, None]:
        """Both ends are among the states."""
        return None, None

    def describe_ends(self) -> tuple[str, str]:
        """Say which models the ends are."""
        return "the model at the first checkpoint", "the model at the last checkpoint"

    def content(self) -> str:
        """Digest all three logs."""
        logs = (self._model.checkpoints, self._optimizer.checkpoints, self._data.checkpoints)
        return Identity().add(*logs).hexdigest()


class ExactPathKernelModel:
    """Decomposes predictions; arguments of the original that tune its loops have no effect.

    ``integral_eps`` is read as the reciprocal of a number of nodes in the original; here the
    quadrature is adaptive and ``tolerance`` its largest error of any output in one update.
    """

    def __init__(  # noqa: PLR0917 - the original's signature
        self,
        model: ModelPath,
        optimizer: OptimizerPath,
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
        self._subject = open_run(history, inner_model(model), loss, Samples(data_path.dataset))
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

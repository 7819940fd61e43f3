"""Influence functions with EK-FAC's curvature, by the package kronfluence."""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from coarlib.baselines.examples import LabelledData
from coarlib.errors import TaskError
from coarlib.outputs import Output
from coarlib.retraining.trainer import Loss

__all__ = ["ekfac_scores", "require_kronfluence"]


def require_kronfluence() -> Any:
    """Import ``kronfluence``; TaskError if it is not installed."""
    try:
        return importlib.import_module("kronfluence")
    except ImportError as error:
        raise TaskError(
            "EK-FAC needs the package kronfluence: pip install 'coarlib[kronfluence]'"
        ) from error


def ekfac_scores(
    models: Sequence[torch.nn.Module],
    train: LabelledData,
    test: LabelledData,
    loss: Loss,
    output: Output,
    *,
    damping: float | None = None,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """Influence of each training example on each output, ``-∇f(t)ᵀ (F + λ)⁻¹ ∇ℓ(n)``.

    F is the eigenvalue-corrected Kronecker-factored Fisher matrix of linear and convolutional
    layers (Grosse et al. 2023), its labels drawn from the model; the mean over models.

    Parameters
    ----------
    models : sequence of nn.Module
        Trained classifiers.
    train, test : LabelledData
    loss : callable (outputs [B, C], targets [B]) -> [B]
    output : callable (outputs [B, C], targets [B]) -> [B]
    damping : float, optional
        λ; by default, as kronfluence has it, a tenth of the mean eigenvalue of each layer.
    batch_size : int

    Returns
    -------
    float32 [N, T]

    Raises
    ------
    TaskError
        If kronfluence is not installed, or there is no model or none of its layers is known to it.
    """
    kronfluence = require_kronfluence()
    arguments = importlib.import_module("kronfluence.arguments")
    if not models:
        raise TaskError("at least one trained model is needed for influence functions")
    task = _task(loss, output)
    data = [TensorDataset(part.inputs, part.targets) for part in (train, test)]
    total = np.zeros((len(train.targets), len(test.targets)), np.float32)
    for model in models:
        try:
            prepared = kronfluence.prepare_model(copy.deepcopy(model).eval(), task)
        except ValueError as error:
            raise TaskError(f"kronfluence cannot take this model: {error}") from error
        on_cpu = next(model.parameters()).device.type == "cpu"
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analyzer = kronfluence.Analyzer(
                "coarlib",
                prepared,
                task,
                cpu=on_cpu,
                output_dir=folder,
                disable_tqdm=True,
                log_level=logging.WARNING,
            )
            analyzer.fit_all_factors(
                "ekfac",
                data[0],
                per_device_batch_size=batch_size,
                factor_args=arguments.FactorArguments("ekfac"),
            )
            analyzer.compute_pairwise_scores(
                "scores",
                "ekfac",
                query_dataset=data[1],
                train_dataset=data[0],
                per_device_query_batch_size=batch_size,
                per_device_train_batch_size=batch_size,
                score_args=arguments.ScoreArguments(damping_factor=damping),
            )
            found = analyzer.load_pairwise_scores("scores")
        # kronfluence's sign is that of a measured loss: what more weight takes away.
        total -= found["all_modules"].T.float().cpu().numpy() / len(models)
    return total


def _task(loss: Loss, output: Output) -> Any:
    base: Any = importlib.import_module("kronfluence.task").Task

    class _OfTrainer(base):
        def compute_train_loss(
            self, batch: Any, model: torch.nn.Module, sample: bool = False
        ) -> torch.Tensor:
            inputs, targets = batch
            outputs = model(inputs)
            if sample:
                with torch.no_grad():
                    targets = outputs.detach().softmax(-1).multinomial(1).flatten()
            return loss(outputs, targets).sum()

        def compute_measurement(self, batch: Any, model: torch.nn.Module) -> torch.Tensor:
            inputs, targets = batch
            return output(model(inputs), targets).sum()

    return _OfTrainer()

"""Attribution methods to compare with, for models small enough to hold all gradients.

Scores are [N, T]: positive says that training on example n raises output t.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, vmap

from coarlib.errors import TaskError
from coarlib.outputs import Output
from coarlib.retraining.trainer import Loss

__all__ = [
    "LabelledData",
    "example_gradients",
    "gradient_similarity",
    "require_traker",
    "trak_scores",
    "traker_scores",
]

_EXAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class LabelledData:
    """Inputs and targets, tensors [N, …]."""

    inputs: torch.Tensor
    targets: torch.Tensor


def example_gradients(
    model: torch.nn.Module, function: Loss | Output, examples: LabelledData
) -> torch.Tensor:
    """Gradient of ``function(model(x), y)`` of each example, float [N, P].

    Every example gets its own copy of the parameters, so that one backward pass gives all
    gradients; only the model's forward pass needs to be one that torch.func can batch.
    """
    model.eval()
    buffers = dict(model.named_buffers())
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    device = next(iter(parameters.values())).device

    def logits(own: dict[str, torch.Tensor], single: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(functional_call(model, {**own, **buffers}, (single[None],))[0])

    parts = []
    for inputs, targets in zip(
        examples.inputs.split(_EXAMPLES_AT_ONCE),
        examples.targets.split(_EXAMPLES_AT_ONCE),
        strict=True,
    ):
        copies = {
            name: value.expand(len(inputs), *value.shape).requires_grad_()
            for name, value in parameters.items()
        }
        outputs = vmap(logits)(copies, inputs.to(device))
        total = function(outputs, targets.to(device)).sum()
        found = torch.autograd.grad(total, list(copies.values()))
        parts.append(torch.cat([part.flatten(1) for part in found], dim=1))
    return torch.cat(parts)


def gradient_similarity(
    models: Sequence[torch.nn.Module],
    train: LabelledData,
    test: LabelledData,
    loss: Loss,
    output: Output,
) -> NDArray[np.float32]:
    """How far a gradient step on each training example moves each output (TracIn-like).

    ``-<grad loss(n), grad output(t)>``, the mean over models or checkpoints (Pruthi et al. 2020,
    eq. 1, for outputs instead of losses).
    """
    _check(models)
    total = torch.zeros(len(train.targets), len(test.targets))
    for model in models:
        steps = example_gradients(model, loss, train)
        total -= (steps @ example_gradients(model, output, test).T).cpu()
    return (total / len(models)).numpy()


def trak_scores(
    models: Sequence[torch.nn.Module],
    train: LabelledData,
    test: LabelledData,
    output: Output,
    damping: float = 1.0,
) -> NDArray[np.float32]:
    """TRAK without random projection (Park et al. 2023, eq. 15): exact for small models.

    Parameters
    ----------
    output : callable
        Log-odds of the right class (``outputs.margin_log_sum_exp``): its sigmoid is taken to be
        the model's probability of the right class.
    damping : float
        Added to the kernel's diagonal, as a share of the diagonal's mean. Without a projection to
        few dimensions the kernel is close to singular, and little damping predicts badly (digits,
        logistic regression: an LDS of .40 at 0.01, .78 at 1).
    """
    _check(models)
    projected = torch.zeros((), dtype=torch.float64)
    residual = torch.zeros((), dtype=torch.float64)
    for model in models:
        features = example_gradients(model, output, train).double()
        wanted = example_gradients(model, output, test).double()
        kernel = features @ features.T  # (F'F + c)^-1 F' = F' (FF' + c)^-1: N x N, not P x P
        kernel.diagonal().add_(damping * kernel.diagonal().mean())
        projected = projected + torch.linalg.solve(kernel, features @ wanted.T)
        with torch.no_grad():
            device = next(model.parameters()).device
            odds = output(model(train.inputs.to(device)), train.targets.to(device))
        residual = residual + (1 - torch.sigmoid(odds.double()))
    scores = residual[:, None] * projected / len(models) ** 2
    return scores.float().cpu().numpy()


def require_traker() -> Any:
    """Import the package ``trak``; TaskError if traker is not installed."""
    try:
        return importlib.import_module("trak")
    except ImportError as error:
        raise TaskError("TRAK by its authors needs their package: pip install traker") from error


def traker_scores(
    models: Sequence[torch.nn.Module],
    train: LabelledData,
    test: LabelledData,
    save_dir: str | Path,
    *,
    proj_dim: int = 512,
    lambda_reg: float = 0.0,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """TRAK for classification by its authors' package ``traker``, with random projections.

    Parameters
    ----------
    models : sequence of nn.Module
        Checkpoints; classifiers of images, on one device.
    train, test : LabelledData
    save_dir : str or Path
        An empty directory for what traker keeps.
    proj_dim : int
        Dimensions that gradients are projected to; with more than there are parameters or
        examples, traker's kernel is singular unless it is regularised.
    lambda_reg : float
        Added to the diagonal of the kernel.
    batch_size : int

    Returns
    -------
    float32 [N, T]

    Raises
    ------
    TaskError
        If traker is not installed.
    """
    _check(models)
    traker = require_traker().TRAKer
    device = next(models[0].parameters()).device
    found = traker(
        model=copy.deepcopy(models[0]),
        task="image_classification",
        train_set_size=len(train.targets),
        save_dir=str(save_dir),
        device=str(device),  # traker compares it with "cpu"
        proj_dim=proj_dim,
        lambda_reg=lambda_reg,
        use_half_precision=False,
        logging_level=logging.WARNING,
    )
    for number, model in enumerate(models):
        found.load_checkpoint(model.state_dict(), model_id=number)
        for batch in _batches(train, batch_size, device):
            found.featurize(batch=batch, num_samples=len(batch[1]))
    found.finalize_features()
    for number, model in enumerate(models):
        found.start_scoring_checkpoint(
            exp_name="coarlib",
            checkpoint=model.state_dict(),
            model_id=number,
            num_targets=len(test.targets),
        )
        for batch in _batches(test, batch_size, device):
            found.score(batch=batch, num_samples=len(batch[1]))
    return np.array(found.finalize_scores(exp_name="coarlib"), dtype=np.float32)


def _batches(
    examples: LabelledData, size: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    parts = zip(examples.inputs.split(size), examples.targets.split(size), strict=True)
    return [(inputs.to(device), targets.to(device)) for inputs, targets in parts]


def _check(models: Sequence[torch.nn.Module]) -> None:
    if not models:
        raise TaskError("at least one trained model is needed for gradients")

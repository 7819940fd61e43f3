"""Rows that retrain: a mask says which examples are in the training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import TaskError
from coarlib.retraining.checkpoints import Checkpoints
from coarlib.retraining.trainer import Trainer, build_model, run_seed
from coarlib.retraining.vectorised import train_many
from coarlib.task import Task

__all__ = ["Evaluate", "ReevaluateTask", "RetrainTask", "Train"]

Train = Callable[[NDArray[np.int64], int, torch.device], torch.nn.Module]
Evaluate = Callable[[torch.nn.Module, torch.device], torch.Tensor]


class _OutputsOfModels(Task):
    """What retraining and re-evaluating share: models in, averaged or separate outputs out."""

    def __init__(
        self, evaluate: Evaluate, num_examples: int, output: str, runs: int, keep_runs: bool
    ) -> None:
        if runs < 1:
            raise TaskError(f"the number of runs must be at least 1, not {runs}")
        self._evaluate, self._num_examples = evaluate, num_examples
        self._output, self._runs, self._keep_runs = output, runs, keep_runs
        self._device = torch.device("cpu")

    @property
    def num_features(self) -> int:
        """N, the number of training examples."""
        return self._num_examples

    def prepare(self, device: torch.device) -> None:
        """Remember the device."""
        self._device = device

    def rows(
        self, indices: NDArray[np.int64], masks: NDArray[np.bool_]
    ) -> Mapping[str, NDArray[Any]]:
        """Return ``{output: [B, T]}``, or ``[B, R, T]`` with ``keep_runs``."""
        jobs = [
            (int(index), run, np.flatnonzero(mask))
            for index, mask in zip(indices, masks, strict=True)
            for run in range(self._runs)
        ]
        outputs = np.stack([self._measured(model) for model in self._models(jobs)])
        outputs = outputs.reshape(len(indices), self._runs, *outputs.shape[1:])
        return {self._output: outputs if self._keep_runs else outputs.mean(axis=1)}

    def _models(self, jobs: list[tuple[int, int, NDArray[np.int64]]]) -> list[torch.nn.Module]:
        raise NotImplementedError

    def _measured(self, model: torch.nn.Module) -> NDArray[np.float64]:
        model.eval()  # whatever train() left: batch norm and dropout must not see the targets
        with torch.no_grad():
            return self._evaluate(model, self._device).double().cpu().numpy()


class RetrainTask(_OutputsOfModels):
    """Retrains on the kept examples and measures the outputs.

    The subset is the row's mask; initialisation and order are functions of (seed, row, run): the
    same alone, in any order, on any worker.

    Parameters
    ----------
    train : Trainer, or callable (subset int64 [k], seed, device) -> nn.Module
        A :class:`Trainer` trains the models of a batch of rows all at once.
    evaluate : callable (model, device) -> [T]
        Outputs of one model; called in evaluation mode without gradients.
    num_examples : int, optional
        N; known from a Trainer.
    output : str
        Name of the store's array.
    seed : int
    runs : int
        Models trained on each subset.
    keep_runs : bool
        Record the runs apart, [R, T] a row, which a noise ceiling needs; else their mean, [T].
    checkpoints : str or Path, optional
        Directory where every model is kept (safetensors).
    at_once : int, optional
        Models trained together; 1 trains one by one, bit for bit the same in any batch. By
        default, what memory allows.
    """

    trains = True

    def __init__(
        self,
        train: Trainer | Train,
        evaluate: Evaluate,
        num_examples: int | None = None,
        *,
        output: str = "test_margins",
        seed: int = 0,
        runs: int = 1,
        keep_runs: bool = False,
        checkpoints: str | Path | None = None,
        at_once: int | None = None,
    ) -> None:
        if isinstance(train, Trainer):
            num_examples = train.num_examples
        elif num_examples is None:
            raise TaskError("num_examples is needed where train is a function")
        super().__init__(evaluate, num_examples, output, runs, keep_runs)
        self._train, self._seed, self._at_once = train, seed, at_once
        self._checkpoints = None if checkpoints is None else Checkpoints(checkpoints, seed)
        together = isinstance(train, Trainer) and at_once != 1
        self.rows_per_batch = max(1, (at_once or 64) // runs) if together else 1
        # Batched arithmetic rounds differently, and training amplifies it.
        self.tolerance = 1e-2 if together else 0.0

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The targets of a :class:`Trainer` that are classes: one whole number an example."""
        targets = self._train.targets if isinstance(self._train, Trainer) else None
        if targets is None or targets.ndim != 1 or targets.is_floating_point():
            return None
        return targets.cpu().numpy().astype(np.int64)

    def _models(self, jobs: list[tuple[int, int, NDArray[np.int64]]]) -> list[torch.nn.Module]:
        seeds = [run_seed(self._seed, index, run) for index, run, _ in jobs]
        subsets = [subset for _, _, subset in jobs]
        if isinstance(self._train, Trainer) and self._at_once != 1:
            models = train_many(self._train, subsets, seeds, self._device, self._at_once)
        else:
            train = self._train.train if isinstance(self._train, Trainer) else self._train
            models = [
                train(subset, seed, self._device)
                for subset, seed in zip(subsets, seeds, strict=True)
            ]
        if self._checkpoints is not None:
            for model, (index, run, subset) in zip(models, jobs, strict=True):
                self._checkpoints.save(model, index, run, subset)
        return models


class ReevaluateTask(_OutputsOfModels):
    """Measures other outputs of models that were retrained before; never trains.

    Parameters
    ----------
    model : callable () -> nn.Module
        Makes the architecture.
    evaluate, num_examples, output, seed, runs, keep_runs
        As :class:`RetrainTask`; seed and subset are checked against each checkpoint.
    checkpoints : str or Path
        What RetrainTask wrote. A missing or stale one is a TaskError.
    """

    rows_per_batch = 1

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        evaluate: Evaluate,
        num_examples: int,
        checkpoints: str | Path,
        *,
        output: str = "test_margins",
        seed: int = 0,
        runs: int = 1,
        keep_runs: bool = False,
    ) -> None:
        super().__init__(evaluate, num_examples, output, runs, keep_runs)
        self._model, self._checkpoints = model, Checkpoints(checkpoints, seed)

    def _models(self, jobs: list[tuple[int, int, NDArray[np.int64]]]) -> list[torch.nn.Module]:
        return [
            self._checkpoints.load(build_model(self._model, 0), index, run, subset).to(self._device)
            for index, run, subset in jobs
        ]

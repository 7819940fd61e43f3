"""Rows that retrain: a mask says which examples are in the training set."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import TaskError
from coarlib.identity import Identity
from coarlib.retraining.checkpoints import Checkpoints
from coarlib.retraining.functions import Estimator, Train, TrainFunction
from coarlib.retraining.randomness import run_seed, seeded
from coarlib.retraining.trainer import Trainer
from coarlib.retraining.vectorised import train_many
from coarlib.task import Task, TaskLayout, own_code

__all__ = ["Evaluate", "ReevaluateTask", "RetrainTask", "UntrainableRowWarning"]

Evaluate = Callable[[Any, torch.device], Any]
Job = tuple[int, int, NDArray[np.int64]]  # row, run, examples

_SECONDS_OF_A_PROOF = 20.0
_PAIRED_ROW = 2**31 - 1  # whose seed all members of a pair share


class UntrainableRowWarning(UserWarning):
    """A row cannot be trained on, for the reason given; its outputs are NaN."""


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
        self._identity: str | None = None

    @property
    def num_features(self) -> int:
        """N, the number of training examples."""
        return self._num_examples

    def prepare(self, device: torch.device) -> None:
        """Remember the device."""
        self._device = device
        self._identity = self._identify().hexdigest()

    def identity(self) -> str | None:
        """Digest data, model, how it is trained, seeds, and what is measured."""
        return self._identity

    def _identify(self) -> Identity:
        return Identity().add(type(self).__qualname__, self._evaluate, self._runs, self._keep_runs)

    def layout(self) -> TaskLayout:
        """Return N and float32 [T], or [runs, T], as measured on a model.

        Raises
        ------
        TaskError
            If none can be measured without the data of a row.
        """
        shape = self._measured(self._some_model()).shape
        return TaskLayout(
            self.num_features,
            {self._output: ("float32", (self._runs, *shape) if self._keep_runs else shape)},
        )

    def rows(
        self, indices: NDArray[np.int64], masks: NDArray[np.bool_]
    ) -> Mapping[str, NDArray[Any]]:
        """Return ``{output: [B, T]}``, or ``[B, R, T]`` with ``keep_runs``.

        A row whose subset cannot be trained on is NaN, and an UntrainableRowWarning names it.
        """
        jobs = [
            (int(index), run, np.flatnonzero(mask))
            for index, mask in zip(indices, masks, strict=True)
            for run in range(self._runs)
        ]
        refused = {job[0]: why for job in jobs if job[1] == 0 and (why := self._refusal(job))}
        for index, why in refused.items():
            warnings.warn(f"row {index}: {why}", UntrainableRowWarning, stacklevel=2)
        models = self._models([job for job in jobs if job[0] not in refused])
        measured = [self._measured(model) for model in models]
        nothing = np.full(measured[0].shape if measured else self._shape(), np.nan)
        found = iter(measured)
        outputs = np.stack([nothing if job[0] in refused else next(found) for job in jobs])
        outputs = outputs.reshape(len(indices), self._runs, *outputs.shape[1:])
        return {self._output: outputs if self._keep_runs else outputs.mean(axis=1)}

    def _shape(self) -> tuple[int, ...]:
        shape = self.layout().outputs[self._output][1]
        return shape[1:] if self._keep_runs else shape

    def _refusal(self, job: Job) -> str | None:
        """Say why a row cannot be computed; None if it can."""
        return None

    def _models(self, jobs: list[Job]) -> list[Any]:
        raise NotImplementedError

    def _some_model(self) -> Any:
        """Return a model, trained or not, whose outputs have the shape of a row's."""
        raise NotImplementedError

    def _measured(self, model: Any) -> NDArray[np.float64]:
        if isinstance(model, torch.nn.Module):
            model.eval()  # whatever train() left: batch norm and dropout must not see the targets
        with torch.no_grad(), seeded(0, self._device), own_code("evaluate(model, device)"):
            found = self._evaluate(model, self._device)
            values = torch.as_tensor(found).double().cpu().numpy()
        if values.ndim == 0:
            raise TaskError("evaluate returned one number; it must return one a target, [T]")
        return values


class RetrainTask(_OutputsOfModels):
    """Retrains on the kept examples and measures the outputs.

    The subset is the row's mask; initialisation, order and all other random numbers are functions
    of (seed, row, run): the same alone, in any order, on any worker.

    Parameters
    ----------
    train : Trainer, Estimator, or callable (subset int64 [k], seed[, device]) -> model
        A :class:`Trainer` trains the models of a batch of rows all at once. Around a function
        torch's, NumPy's and Python's generators are seeded; if its first model takes seconds only,
        it is trained twice, to see that it is the same.
    evaluate : callable (model, device) -> [T]
        Outputs of one model; called in evaluation mode without gradients.
    num_examples : int, optional
        N; known from a Trainer or an Estimator.
    output : str
        Name of the store's array.
    seed : int
    runs : int
        Models trained on each subset.
    keep_runs : bool
        Record the runs apart, [R, T] a row, which a noise ceiling needs; else their mean, [T].
    paired : bool, optional
        Run r of every row has the same random numbers: initialisation, and order of the examples
        that two rows have in common. Differences of rows then are of the examples, not of the
        seeds, and the mean over runs is a mean over pairs. By default, so it is for the rows that
        leave out one example or none.
    checkpoints : str or Path, optional
        Directory where every model is kept (safetensors).
    at_once : int, optional
        Models trained together; 1 trains one by one, bit for bit the same in any batch. By
        default, what memory allows.
    """

    trains = True

    def __init__(
        self,
        train: Trainer | Estimator | Train,
        evaluate: Evaluate,
        num_examples: int | None = None,
        *,
        output: str = "test_margins",
        seed: int = 0,
        runs: int = 1,
        keep_runs: bool = False,
        paired: bool | None = None,
        checkpoints: str | Path | None = None,
        at_once: int | None = None,
    ) -> None:
        if isinstance(train, Trainer | Estimator):
            num_examples = train.num_examples
        elif num_examples is None:
            raise TaskError("num_examples is needed where train is a function")
        super().__init__(evaluate, num_examples, output, runs, keep_runs)
        self._train: Trainer | Estimator | TrainFunction
        self._train = train if isinstance(train, Trainer | Estimator) else TrainFunction(train)
        self._seed, self._paired, self._at_once = seed, paired, at_once
        self._checkpoints = None if checkpoints is None else Checkpoints(checkpoints, seed)
        if isinstance(train, Estimator) and checkpoints is not None:
            raise TaskError("checkpoints keep torch models; those of an estimator cannot be kept")
        self._proven = isinstance(train, Trainer)  # which proves itself
        together = isinstance(train, Trainer) and at_once != 1
        self.rows_per_batch = max(1, (at_once or 64) // runs) if together else 1
        # Batched arithmetic rounds differently, and training amplifies it.
        self.tolerance = 1e-2 if together else 0.0

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The targets that are classes: one whole number an example."""
        if isinstance(self._train, TrainFunction):
            return None
        targets = self._train.targets
        targets = np.asarray(targets.cpu() if isinstance(targets, torch.Tensor) else targets)
        if targets.ndim != 1 or targets.dtype.kind not in "iu":
            return None
        return targets.astype(np.int64)

    def prepare(self, device: torch.device) -> None:
        """Check that training is a function of (subset, seed), and that models can be kept."""
        super().prepare(device)
        if isinstance(self._train, Trainer):
            self._train.check_pure(device)
            if self._checkpoints is not None:
                self._checkpoints.check(self._train.new_model(0))

    def _identify(self) -> Identity:
        found = super()._identify().add(self._seed, self._paired, self._num_examples)
        return found.add(*self._train.facts())

    def _some_model(self) -> Any:
        if isinstance(self._train, Trainer):
            return self._train.new_model(0).to(self._device)
        try:
            return self._train.train(np.arange(self._num_examples), 0, self._device)
        except Exception as error:  # whatever a user's function raises
            raise TaskError(f"training on all examples fails: {error}") from error

    def _seed_of(self, job: Job) -> int:
        index, run, subset = job
        paired = self._paired
        if paired is None:
            paired = len(subset) >= self._num_examples - 1
        return run_seed(self._seed, _PAIRED_ROW if paired else index, run)

    def _refusal(self, job: Job) -> str | None:
        if isinstance(self._train, Trainer):
            try:
                self._train.check_size(len(job[2]))
            except TaskError as error:
                return str(error)
        return None

    def _models(self, jobs: list[Job]) -> list[Any]:
        if isinstance(self._train, Trainer) and self._at_once != 1:
            seeds, subsets = [self._seed_of(job) for job in jobs], [job[2] for job in jobs]
            models = train_many(self._train, subsets, seeds, self._device, self._at_once)
        else:
            models = [self._trained(job) for job in jobs]
        if self._checkpoints is not None:
            for model, job in zip(models, jobs, strict=True):
                self._checkpoints.save(model, *job)
        return models

    def _trained(self, job: Job) -> Any:
        """Train one model; TaskError, naming the row, for whatever a user's function raises."""
        started = time.monotonic()
        try:
            model = self._train.train(job[2], self._seed_of(job), self._device)
            if not self._proven and time.monotonic() - started < _SECONDS_OF_A_PROOF:
                self._prove(job, model)
        except Exception as error:
            what = "" if isinstance(error, TaskError) else f"{type(error).__name__}: "
            reason = " ".join(str(error).split())[:300]
            raise TaskError(
                f"row {job[0]}, a subset of {len(job[2])} examples, cannot be trained: "
                f"{what}{reason}"
            ) from error
        self._proven = True
        return model

    def _prove(self, job: Job, model: Any) -> None:
        """Train once more; TaskError if the outputs differ."""
        again = self._measured(self._train.train(job[2], self._seed_of(job), self._device))
        first = self._measured(model)
        if not np.allclose(first, again, rtol=1e-3, atol=1e-3 * first.std(), equal_nan=True):
            raise TaskError(
                "train gives another model for the same subset and seed: draw its random numbers "
                "from the seed, or from torch's, NumPy's or Python's global generators"
            )


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
        self._model, self._seed = model, seed
        self._checkpoints = Checkpoints(checkpoints, seed)

    def _identify(self) -> Identity:
        return super()._identify().add(self._model, self._seed)

    def _some_model(self) -> torch.nn.Module:
        with seeded(0):
            return self._model().to(self._device)

    def _models(self, jobs: list[Job]) -> list[torch.nn.Module]:
        return [self._checkpoints.load(self._some_model(), *job).to(self._device) for job in jobs]

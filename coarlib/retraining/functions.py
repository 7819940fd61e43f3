"""Other ways to train than a Trainer: a function of one's own, or a scikit-learn estimator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import TaskError
from coarlib.retraining.data import as_subset
from coarlib.retraining.randomness import checked_seed, seeded

__all__ = ["Estimator", "Train", "TrainFunction"]

Train = Callable[..., Any]


class TrainFunction:
    """A user's ``train(subset, seed)`` or ``train(subset, seed, device)``, its generators seeded.

    Raises
    ------
    TaskError
        If it takes other arguments.
    """

    def __init__(self, function: Train) -> None:
        if isinstance(function, torch.nn.Module) or not callable(function):
            hint = ""
            if hasattr(function, "fit"):
                hint = "; Estimator(estimator, inputs, targets) trains one of scikit-learn"
            raise TaskError(
                "train must be a Trainer, an Estimator, or a function (subset, seed[, device]), "
                f"not {type(function).__name__}{hint}"
            )
        self.function = function
        signature = inspect.signature(function)
        for count in (3, 2):
            try:
                signature.bind(*[None] * count)
            except TypeError:
                continue
            self._arguments = count
            return
        raise TaskError(
            f"train must take (subset, seed) or (subset, seed, device), not {signature}"
        )

    def facts(self) -> tuple[Any, ...]:
        """Return what a digest of this way of training covers."""
        return (self.function,)

    def train(self, subset: NDArray[np.int64], seed: int, device: torch.device) -> Any:
        """Call the function; TaskError if it returns nothing."""
        with seeded(seed, device):
            model = self.function(*(subset, seed, device)[: self._arguments])
        if model is None:
            raise TaskError("train returned None; it must return the trained model")
        return model


class Estimator:
    """Trains an estimator of scikit-learn on subsets.

    Parameters
    ----------
    estimator : object with ``fit(X, y)`` and ``get_params``
        Cloned for every subset; each ``random_state`` among its parameters (those of a pipeline's
        steps too) is set to the seed.
    inputs, targets : arrays [N, …]
        As the estimator takes them.

    Raises
    ------
    TaskError
        If it is no estimator, or inputs and targets differ in length.
    """

    def __init__(self, estimator: Any, inputs: Any, targets: Any) -> None:
        if not hasattr(estimator, "fit") or not hasattr(estimator, "get_params"):
            raise TaskError(
                f"{type(estimator).__name__} is no estimator: it lacks fit or get_params"
            )
        self.estimator, self.inputs, self.targets = estimator, inputs, np.asarray(targets)
        self.num_examples = inputs.shape[0] if hasattr(inputs, "shape") else len(inputs)
        if self.num_examples != len(self.targets):
            raise TaskError(f"{self.num_examples} inputs but {len(self.targets)} targets")

    def train(self, subset: Any, seed: int, device: Any = "cpu") -> Any:
        """Fit a clone on the examples of a subset."""
        from sklearn.base import clone

        examples = np.sort(as_subset(subset, self.num_examples))
        model = clone(self.estimator)
        names = [name for name in model.get_params() if name.split("__")[-1] == "random_state"]
        seed = checked_seed(seed)
        with seeded(seed):
            model.set_params(**dict.fromkeys(names, seed % 2**32))
            rows = self.inputs if hasattr(self.inputs, "shape") else np.asarray(self.inputs)
            return model.fit(rows[examples], self.targets[examples])

    def facts(self) -> tuple[Any, ...]:
        """Return all that a trained model depends on besides subset and seed, for a digest."""
        settings = {
            name: repr(value) for name, value in sorted(self.estimator.get_params().items())
        }
        inputs = self.inputs.toarray() if hasattr(self.inputs, "toarray") else self.inputs
        return type(self.estimator).__qualname__, settings, np.asarray(inputs), self.targets

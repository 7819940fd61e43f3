"""The fast_l1 package itself: found, checked, and run on current torch without a change to it.

fast_l1 indexes tensors in main memory with CUDA tensors (its table of residuals by the batch's
index, its list of columns to swap by a CUDA mask), which torch has refused since 2.0.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from coarlib.errors import RegressionError

__all__ = ["IndicesFollow", "check_version", "installed_regressor"]

INDEXING = frozenset({torch.Tensor.__getitem__, torch.Tensor.__setitem__})
SAGA_ARGUMENTS = frozenset({
    "weight", "bias", "loader", "val_loader", "lr", "start_lams", "lam_decay", "num_lambdas",
    "early_stop_freq", "early_stop_eps", "update_bias",
})  # fmt: skip


class IndicesFollow(TorchFunctionMode):
    """While this context is open, an index goes to the device of the tensor that it indexes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in INDEXING:
            tensor, index, *value = args
            args = (tensor, _moved(index, tensor.device), *value)
        return func(*args, **(kwargs or {}))


def _moved(index: Any, device: torch.device) -> Any:
    if isinstance(index, tuple | list):
        return type(index)(_moved(part, device) for part in index)
    if isinstance(index, torch.Tensor) and index.device != device:
        return index.to(device)
    return index


def installed_regressor() -> Any:
    """Return ``fast_l1.regressor``.

    Raises
    ------
    RegressionError
        If fast_l1, cupy or a CUDA device is missing, or its ``train_saga`` is another one than that
        of fast_l1 0.0.1, with what to do.
    """
    if not torch.cuda.is_available():
        raise RegressionError("fast_l1 needs a CUDA device; the solver saga runs anywhere")
    try:
        regressor = importlib.import_module("fast_l1.regressor")
    except ImportError as error:
        raise RegressionError(
            f"fast_l1 is not usable here ({error}); pip install 'coarlib[fast_l1]', or use "
            "the solver saga, which needs neither fast_l1 nor cupy"
        ) from error
    check_version(regressor)
    return regressor


def check_version(regressor: Any) -> None:
    """RegressionError if a regressor's ``train_saga`` lacks arguments of fast_l1 0.0.1."""
    missing = SAGA_ARGUMENTS - set(inspect.signature(regressor.train_saga).parameters)
    if missing or not hasattr(regressor, "calc_max_lambda"):
        raise RegressionError(
            f"the installed fast_l1 is not 0.0.1, whose functions are called here (train_saga "
            f"lacks {', '.join(sorted(missing)) or 'calc_max_lambda beside it'}); install "
            "that one, or use the solver saga"
        )

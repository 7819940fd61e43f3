"""Reading weights that others trained, without running their code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coarlib.errors import SetupError
from coarlib.loading import load_pt

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."  # left by nn.DataParallel


def read_weights(path: str | Path, where_to_get: str) -> dict[str, torch.Tensor]:
    """Read the state dict of a checkpoint.

    Parameters
    ----------
    path : str or Path
        A state dict, a dict that holds one under ``state_dict`` or ``model``, or a whole pickled
        module such as COAR's published models: of those only the tensors are read, and no class
        but torch's own is imported.
    where_to_get : str
        What to say if the file is missing: what to get from where.

    Returns
    -------
    dict of name to Tensor
        On the CPU, without the prefix that ``nn.DataParallel`` leaves.

    Raises
    ------
    SetupError
        If the file is missing or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"there is no model at {path}; {where_to_get}")
    content = load_pt(path, SetupError, read=_load)
    if isinstance(content, nn.Module):
        content = _tensors_of(content)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise SetupError(f"{path} holds no state dict")
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise SetupError(f"{path} holds something else than tensors by name")
    return {str(key).removeprefix(_PREFIX): value for key, value in content.items()}


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: object) -> nn.Module:
    """Put weights into a model; SetupError if they are those of another architecture."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"{path} holds weights of another architecture: {reason}") from error
    return model.eval()


def _load(path: Path) -> Any:
    """Unpickle weights, and whole modules as inert stand-ins of their classes."""
    try:
        return _unpickle(path)
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"{path} holds more than weights, which is not opened because it could run code; "
            "save model.state_dict() there instead"
        ) from error


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
            raise
        if not zipfile.is_zipfile(path):
            raise
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(_stand_in(name), name) for name in needed]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            try:
                return torch.load(path, weights_only=True, map_location="cpu")
            except (TypeError, AttributeError) as error:  # what was called is no module
                raise pickle.UnpicklingError(str(error)) from error


def _stand_in(name: str) -> type:
    """Return a class that holds what a pickled module holds and can do nothing."""
    return type(name.rsplit(".", 1)[-1], (nn.Module,), {})


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Collect tensors by path; a module registered under several names counts once."""
    found: dict[str, torch.Tensor] = {}
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        for kind in (child._parameters, child._buffers):
            found |= {f"{prefix}{key}": value for key, value in kind.items() if value is not None}
    return found

"""Retrained models on disk: one safetensors file a (row, run) that says what it is."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.errors import TaskError

__all__ = ["Checkpoints"]

_FORMAT = "coarlib retrained model 1"


class Checkpoints:
    """A directory of retrained models.

    Parameters
    ----------
    path : str or Path
        Created when first written to.
    seed : int, optional
        Seed of the task; part of what a checkpoint is checked against, unless it is None.

    Raises
    ------
    TaskError
        If the safetensors package is not installed.
    """

    def __init__(self, path: str | Path, seed: int | None) -> None:
        self.path, self._seed = Path(path), seed
        try:
            self._safetensors = importlib.import_module("safetensors")
            self._torch = importlib.import_module("safetensors.torch")
        except ImportError as error:
            raise TaskError(
                "checkpoints need the safetensors package: pip install safetensors"
            ) from error

    def file(self, index: int, run: int) -> Path:
        """Where the model of run ``run`` of row ``index`` is."""
        return self.path / f"row_{index:06d}_run_{run}.safetensors"

    def save(self, model: torch.nn.Module, index: int, run: int, subset: NDArray[np.int64]) -> None:
        """Write a model; the file appears under its name only when it is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.file(index, run)
        building = file.with_name(f".{file.name}.{os.getpid()}")
        facts = self._facts(index, run, subset)
        self._torch.save_file(self._state(model), building, metadata=facts)
        os.replace(building, file)

    def check(self, model: torch.nn.Module) -> None:
        """Raise TaskError if a model cannot be kept."""
        self._state(model)

    def _state(self, model: Any) -> dict[str, torch.Tensor]:
        """Return a model's state in tensors that share no memory, as tied weights do."""
        if not isinstance(model, torch.nn.Module):
            raise TaskError(f"checkpoints keep torch models, not {type(model).__name__}")
        state = model.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise TaskError(
                    f"{name} of the model's state is no tensor, so that its checkpoint cannot be "
                    "kept; leave it out of state_dict, or train without checkpoints"
                )
        return {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in state.items()
        }

    def load(
        self, model: torch.nn.Module, index: int, run: int, subset: NDArray[np.int64]
    ) -> torch.nn.Module:
        """Load the state into ``model`` and return it in evaluation mode.

        Raises
        ------
        TaskError
            If the checkpoint is missing, damaged, of another seed or subset, or of another
            architecture. Nothing is trained instead.
        """
        file = self.file(index, run)
        state = self.state(index, run, subset)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise TaskError(f"{file} is of another model: {reason}") from error
        return model.eval()

    def state(self, index: int, run: int, subset: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Read a model's state; TaskError as :meth:`load`, but for the architecture."""
        file = self.file(index, run)
        if not file.is_file():
            raise TaskError(f"there is no checkpoint {file}; train row {index} with checkpoints")
        wanted = self._facts(index, run, subset)
        try:
            with self._safetensors.safe_open(file, framework="pt") as content:
                found = content.metadata() or {}
                state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except self._safetensors.SafetensorError as error:
            raise TaskError(f"{file} is damaged: {error}") from error
        if self._seed is None:
            wanted.pop("seed")
        for fact, value in wanted.items():
            if found.get(fact) != value:
                raise TaskError(
                    f"{file} is stale: its {fact} is {found.get(fact)}, but row {index} needs "
                    f"{value}"
                )
        return state

    def _facts(self, index: int, run: int, subset: NDArray[Any]) -> dict[str, str]:
        kept = np.sort(np.asarray(subset, dtype=np.int64))
        return {
            "format": _FORMAT,
            "seed": str(self._seed),
            "row": str(index),
            "run": str(run),
            "subset": xxhash.xxh3_64_hexdigest(kept.tobytes()),
        }

"""A result directory: tensors in ``datamodels.pt``, arrays in .npz files, documents in JSON.

Everything appears whole, and ``datamodels.pt`` last: a directory that holds it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.files import whole_file

DATAMODELS = "datamodels.pt"
DAMAGE = (UnpicklingError, BadZipFile, KeyError, TypeError)
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ResultFiles:
    """The content of a result directory.

    Attributes
    ----------
    tensors : dict of name to array
        Saved as float32, in the file that upstream reads.
    arrays : dict of file name to arrays
        Files without arrays are not written, and read as {}.
    documents : dict of file name to JSON values
        NaN and infinity are saved as null; documents that are None are not written.
    """

    tensors: Arrays
    arrays: dict[str, Arrays] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the directory.

        Raises
        ------
        RegressionError
            If ``path`` already holds a result. Nothing is overwritten.
        """
        if path.exists() and (not path.is_dir() or (path / DATAMODELS).exists()):
            raise RegressionError(
                f"{path} already holds a result; give another directory or move it away"
            )
        path.mkdir(parents=True, exist_ok=True)
        for name, arrays in self.arrays.items():
            if arrays:
                with whole_file(path / name) as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
        for name, content in self.documents.items():
            if content is not None:
                with whole_file(path / name) as file:
                    file.write(json.dumps(_finite(content), indent=1, allow_nan=False).encode())
        found = {
            name: torch.from_numpy(np.ascontiguousarray(value, np.float32))
            for name, value in self.tensors.items()
        }
        with whole_file(path / DATAMODELS) as file:
            torch.save(found, file)

    @classmethod
    def load(
        cls, path: Path, arrays: Sequence[str], documents: Sequence[str], mmap: bool
    ) -> ResultFiles:
        """Read a directory.

        Parameters
        ----------
        path : Path
        arrays, documents : sequence of str
            The files to read; what is missing is {} or None.
        mmap : bool
            Map the tensors instead of reading them.

        Raises
        ------
        RegressionError
            If the directory holds no complete result, or a file is damaged.
        """
        if not (path / DATAMODELS).is_file():
            raise RegressionError(f"{path} holds no finished result ({DATAMODELS} is missing)")
        try:
            saved = torch.load(path / DATAMODELS, weights_only=True, mmap=mmap, map_location="cpu")
            return cls(
                {name: tensor.numpy() for name, tensor in saved.items()},
                {name: _read_npz(path / name) for name in arrays},
                {name: _read_json(path / name) for name in documents},
            )
        except (OSError, ValueError, RuntimeError, EOFError, AttributeError, *DAMAGE) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise RegressionError(f"{path} is damaged or not a result: {reason}") from error


def _read_npz(path: Path) -> Arrays:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinity) by null, and numpy scalars by numbers."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

"""Score matrices from files, memory-mapped where the format allows it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError, nearest
from coarlib.loading import load_json, load_npy, load_npz, load_pt
from coarlib.statistics.arrays import as_array

__all__ = ["load_scores", "numbered_files", "read_tensors", "read_values"]

_ATTRIBUTIONS = "datamodels.pt"
_WEIGHT_KEYS = ("weight", "scores", "score")


def load_scores(path: str | Path, key: str | None = None) -> NDArray[Any]:
    """Read a score matrix [N, T].

    Parameters
    ----------
    path : str or Path
        ``.npy`` or TRAK's ``.mmap`` (the same format; stays on disk until it is read), ``.npz``,
        ``.pt`` or ``.pth`` (a tensor, or a dict of them), ``.safetensors``, or a directory:
        attributions written by run_regression, a folder of TRAK scores, quanda's explanation cache
        (``0.pt``, ``1.pt``, …, each [batch, N]), or a folder of bergson's scores.
    key : str, optional
        Which tensor of a dict, or which file of a scores folder. Not needed where there is one
        matrix, or one named ``weight``, ``scores`` or ``score``.

    Returns
    -------
    real [N, T]

    Raises
    ------
    ScoringError
        If there is no such file, it cannot be read without executing code from it, or it does not
        hold exactly one matrix by that name.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "token_scores.bin").is_file():
            raise ScoringError(
                f"{path} holds bergson's scores of single tokens; one score an example is needed"
            )
        if (path / "scores.bin").is_file():
            return _read_bergson(path, key)
        if (path / "0.pt").is_file():
            return _read_explanations(path, key)
        path = _file_in(path, key)
        key = None
    if not path.is_file():
        raise ScoringError(f"there are no scores at {path}")
    if path.suffix not in _READERS:
        raise ScoringError(f"{path} is none of {', '.join(_READERS)}, nor a directory of scores")
    scores = as_array(read_values(path, key), str(path))
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2:
        raise ScoringError(
            f"{path} holds an array of shape {list(scores.shape)}, not scores [N, T]"
        )
    return scores


def read_values(path: Path, key: str | None = None) -> Any:
    """Read what a file of numbers holds: an array or a tensor, or a ``.pt``'s list of them.

    Raises
    ------
    ScoringError
        As :func:`load_scores`.
    """
    if not path.is_file():
        raise ScoringError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise ScoringError(f"{path} is none of {', '.join(_READERS)}")
    return _READERS[path.suffix](path, key)


def _file_in(directory: Path, key: str | None) -> Path:
    if (directory / _ATTRIBUTIONS).is_file():
        return directory / _ATTRIBUTIONS
    files = {
        file.stem: file
        for folder in (directory / "scores", directory)
        for file in sorted(folder.glob("*.mmap"))
    }
    if not files:
        raise ScoringError(f"{directory} holds neither {_ATTRIBUTIONS} nor TRAK scores (*.mmap)")
    return files[_chosen(directory, list(files), key)]


def numbered_files(directory: str | Path) -> list[Path]:
    """Return ``0.pt``, ``1.pt``, … in order of number; ScoringError if one is missing."""
    found = {int(f.stem): f for f in Path(directory).glob("*.pt") if f.stem.isdecimal()}
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise ScoringError(f"{directory} has no file {missing[0]}.pt")
    return [found[number] for number in sorted(found)]


def _read_explanations(directory: Path, key: str | None) -> NDArray[Any]:
    """Join batches of explanations [b, N] to scores [N, T]."""
    if key is not None:
        raise ScoringError(f"{directory} holds one matrix in parts, so no key can be chosen")
    parts = [as_array(read_tensors(file), str(file)) for file in numbered_files(directory)]
    if any(part.ndim != 2 or part.shape[1] != parts[0].shape[-1] for part in parts):
        raise ScoringError(f"the files of {directory} are not explanations [batch, N] of one N")
    return np.concatenate(parts).T


def _read_bergson(directory: Path, key: str | None) -> NDArray[Any]:
    """Read bergson's records of N (score, written) pairs a target; all must be written."""
    if key is not None:
        raise ScoringError(f"{directory} holds one matrix, so no key can be chosen")
    try:
        content = load_json(directory / "info.json", ScoringError)
        layout, count = content["dtype"], int(content["num_items"])
        # The upper halves of float32, for which NumPy has no type of its own.
        halves = "bfloat16" in layout["formats"]
        plain = ["uint16" if x == "bfloat16" else x for x in layout["formats"]]
        layout = layout | {"formats": plain}
        records = np.memmap(directory / "scores.bin", np.dtype(layout), "r", shape=(count,))
        names = range(int(content["num_scores"]))
        written = all(bool(records[f"written_{name}"].all()) for name in names)
        scores = np.stack([np.asarray(records[f"score_{name}"]) for name in names], axis=1)
        if halves:
            scores = (scores.astype(np.uint32) << 16).view(np.float32)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ScoringError(f"{directory} is not a whole folder of bergson's scores") from error
    if not written:
        raise ScoringError(f"{directory} lacks scores: some are not written yet")
    return scores


def _chosen(where: Path, names: list[str], key: str | None) -> str:
    if key is not None:
        if key not in names:
            raise ScoringError(
                f"{where} has no scores {key!r} (it has {', '.join(names)}){nearest(key, names)}"
            )
        return key
    for name in names if len(names) == 1 else _WEIGHT_KEYS:
        if name in names:
            return name
    raise ScoringError(f"{where} holds {', '.join(names) or 'nothing'}; say which are the scores")


def _read_npy(path: Path, key: str | None) -> NDArray[Any]:
    if key is not None:
        raise ScoringError(f"{path} holds one array, so no key can be chosen ({key!r})")
    return load_npy(path, ScoringError)


def _read_npz(path: Path, key: str | None) -> NDArray[Any]:
    found = load_npz(path, ScoringError)
    return found[_chosen(path, list(found), key)]


def read_tensors(path: Path) -> Any:
    """Load what ``torch.save`` wrote; ScoringError if it is damaged or holds more than tensors."""
    return load_pt(path, ScoringError)


def _read_torch(path: Path, key: str | None) -> Any:
    import torch

    content, one = read_tensors(path), torch.Tensor | np.ndarray
    if isinstance(content, dict):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, one)}
        return tensors[_chosen(path, list(tensors), key)]
    if key is not None:
        raise ScoringError(f"{path} holds one tensor, so no key can be chosen ({key!r})")
    parts = content if isinstance(content, list | tuple) and content else [content]
    if not all(isinstance(part, one) for part in parts):
        raise ScoringError(f"{path} holds a {type(content).__name__}, not a tensor or dict of them")
    return content


def _read_safetensors(path: Path, key: str | None) -> Any:
    try:
        safetensors = importlib.import_module("safetensors")
    except ImportError as error:
        raise ScoringError(
            f"{path} needs the safetensors package: pip install safetensors"
        ) from error
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.get_tensor(_chosen(path, list(file.keys()), key))
    except safetensors.SafetensorError as error:
        raise ScoringError(f"{path} is not a whole safetensors file: {error}") from error


_READERS = {
    ".npy": _read_npy,
    ".mmap": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}

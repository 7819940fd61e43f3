"""Retrained models as a directory in dattri's layout, written so that it can be trusted.

``metadata.yml`` (plain YAML) says how the directory was made, the seed too; ``{i}/indices.txt``
and ``{i}/model_weights_{j}.pt`` hold subset i and the state of its run j, ``index_{n}/`` those of
leaving out example n. Every file appears whole or not at all, and a model that is there is not
trained again, so the same call resumes, and several calls may share a directory. Subsets and seeds
are dattri's for a given seed: ``default_rng(seed + i).choice(N, k, replace=False)``.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from coarlib.errors import TaskError
from coarlib.files import whole_file
from coarlib.progress import Progress
from coarlib.retraining.loaders import sampled_examples, subset_loader

__all__ = ["read_indices", "read_metadata", "retrain_lds", "retrain_loo"]

METADATA = "metadata.yml"
INDICES = "indices.txt"
TrainFunction = Callable[..., torch.nn.Module]


def retrain_lds(  # noqa: PLR0917 - the signature is dattri's
    train_func: TrainFunction,
    dataloader: DataLoader[Any],
    path: str | Path,
    num_subsets: int = 100,
    subset_ratio: float = 0.5,
    num_runs_per_subset: int = 1,
    start_id: int = 0,
    total_num_subsets: int = 0,
    seed: int | None = None,
    **kwargs: Any,
) -> None:
    """Retrain on random subsets of the data.

    Parameters
    ----------
    train_func : callable (loader, seed=…, **kwargs) -> nn.Module
        Run with torch's, NumPy's and Python's generators seeded, so that each model is the same
        whether it is trained alone, in a series or in another order.
    dataloader : DataLoader
        Subsets are of the N examples that its sampler draws; positions among them are recorded.
    path : str or Path
        The directory; see the module.
    num_subsets : int
    subset_ratio : float
        Subsets have ``int(N * subset_ratio)`` examples.
    num_runs_per_subset : int
        Models a subset; run j of subset i is seeded ``seed + i * num_runs_per_subset + j``.
    start_id, total_num_subsets : int
        To share the work: this call does subsets ``start_id`` to ``start_id + num_subsets`` of
        ``total_num_subsets``. Without a total, all ``num_subsets``.
    seed : int, optional
        Recorded; drawn, or taken from the directory, if None.

    Raises
    ------
    TaskError
        If the arguments contradict each other or what the directory was made with.
    """
    total = total_num_subsets or num_subsets
    first = start_id if total_num_subsets else 0
    if num_subsets < 1 or num_runs_per_subset < 1 or first < 0 or first + num_subsets > total:
        raise TaskError(
            f"cannot do subsets {first} to {first + num_subsets} of {total} with "
            f"{num_runs_per_subset} runs each"
        )
    examples = sampled_examples(dataloader)
    size = int(len(examples) * subset_ratio)
    if not 1 <= size <= len(examples):
        raise TaskError(
            f"subset_ratio {subset_ratio} of {len(examples)} examples makes subsets of {size}"
        )
    path = Path(path)
    metadata = {
        "mode": "lds",
        "data_length": len(examples),
        "train_func": getattr(train_func, "__name__", type(train_func).__name__),
        "num_subsets": total,
        "subset_ratio": float(subset_ratio),
        "num_runs_per_subset": num_runs_per_subset,
        "subset_dir_map": {i: f"./{i}" for i in range(total)},
    }
    seed = _settle(path, metadata, seed)
    with Progress(num_subsets * num_runs_per_subset, "retraining", "model") as progress:
        for i in range(first, first + num_subsets):
            rng = np.random.default_rng(seed + i)
            subset = rng.choice(len(examples), size, replace=False)
            _write_text(path / str(i) / INDICES, "\n".join(map(str, subset)))
            for j in range(num_runs_per_subset):
                _train(
                    path / str(i) / f"model_weights_{j}.pt",
                    train_func,
                    (dataloader, examples[subset]),
                    seed + i * num_runs_per_subset + j,
                    kwargs,
                )
                progress.advance()


def retrain_loo(
    train_func: TrainFunction,
    dataloader: DataLoader[Any],
    path: str | Path,
    indices: Sequence[int] | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> None:
    """Retrain without single examples.

    Parameters
    ----------
    train_func, dataloader, path
        As :func:`retrain_lds`. Unlike dattri's, state dicts are saved, not pickled modules.
    indices : sequence of int, optional
        Positions among the loader's examples to leave out in turn; all by default. Further calls
        with other indices add to the directory.
    seed : int, optional
        The model without position n is seeded ``seed + n``.

    Raises
    ------
    TaskError
        If an index is not a position, or the directory was made otherwise.
    """
    examples = sampled_examples(dataloader)
    left_out = list(range(len(examples))) if indices is None else [int(i) for i in indices]
    wrong = [i for i in left_out if not 0 <= i < len(examples)]
    if wrong:
        raise TaskError(f"cannot leave out example {wrong[0]} of {len(examples)}")
    path = Path(path)
    metadata = {
        "mode": "loo",
        "data_length": len(examples),
        "train_func": getattr(train_func, "__name__", type(train_func).__name__),
    }
    seed = _settle(path, metadata, seed)
    with Progress(len(left_out), "retraining", "model") as progress:
        for i in left_out:
            file = path / f"index_{i}" / "model_weights.pt"
            _train(file, train_func, (dataloader, np.delete(examples, i)), seed + i, kwargs)
            progress.advance()


def read_metadata(path: str | Path, mode: str) -> dict[str, Any]:
    """Read ``metadata.yml``; TaskError if it is missing, unsafe, or of another mode."""
    file = Path(path) / METADATA
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{path} is not a directory of retrained models: no {METADATA}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise TaskError(f"{file} is not plain YAML: {reason}") from error
    if not isinstance(content, dict) or content.get("mode") != mode:
        found = content.get("mode") if isinstance(content, dict) else None
        raise TaskError(f"{file} has mode {found}, not {mode}")
    return content


def read_indices(file: Path) -> NDArray[np.int64]:
    """Read one integer a line, int64 [k]."""
    try:
        return np.array(file.read_bytes().split(), dtype=np.int64)
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{file} is not a list of integers") from error


def _settle(path: Path, metadata: dict[str, Any], seed: int | None) -> int:
    """Write the metadata, or agree with what another call has written; return the seed."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / METADATA
    mine = {**metadata, "seed": secrets.randbits(31) if seed is None else int(seed)}
    building = path / f".{METADATA}.{os.getpid()}"
    building.write_text(yaml.safe_dump(mine, sort_keys=False), encoding="utf-8")
    try:
        os.link(building, file)  # fails if the file exists: the first call decides
    except FileExistsError:
        pass
    finally:
        building.unlink()
    found = read_metadata(path, metadata["mode"])
    if seed is None:
        mine["seed"] = found.get("seed")
    for key, value in mine.items():
        if found.get(key) != value and key != "train_func":
            raise TaskError(
                f"{path} was made with {key} {found.get(key)}, not {value}; choose another "
                "directory"
            )
    if found.get("seed") is None:
        raise TaskError(f"{file} records no seed, so the directory cannot be continued")
    return int(found["seed"])


def _train(
    file: Path,
    train_func: TrainFunction,
    data: tuple[DataLoader[Any], NDArray[np.int64]],
    seed: int,
    kwargs: dict[str, Any],
) -> None:
    if file.is_file():
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what a user's train_func may draw from
        random.seed(seed)
        loader = subset_loader(*data, torch.Generator().manual_seed(seed))
        state = train_func(loader, seed=seed, **kwargs).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        torch.save(state, stream)


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file, "w") as stream:
        stream.write(text)

"""Retrained models as a directory in dattri's layout, written so that it can be trusted.

``metadata.yml`` (plain YAML) says how the directory was made, the seed too; ``{i}/indices.txt``
and ``{i}/model_weights_{j}.pt`` hold subset i and the state of its run j, ``index_{n}/`` those of
leaving out example n. Every file appears whole or not at all, and a model that is there is not
trained again, so the same call resumes, also what dattri began. Subsets
(``default_rng(seed + i).choice(N, k, replace=False)``), seeds, loaders and so the models are
dattri's for a given seed, if ``train_func`` seeds torch with what it is given.
"""

from __future__ import annotations

import copy
import inspect
import secrets
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from coarlib.errors import TaskError
from coarlib.files import for_file, whole_file
from coarlib.loading import load_yaml
from coarlib.progress import Progress
from coarlib.retraining.loaders import sampled_examples, subset_loader
from coarlib.retraining.randomness import seeded

__all__ = ["architecture", "read_indices", "read_metadata", "retrain_lds", "retrain_loo"]

METADATA = "metadata.yml"
INDICES = "indices.txt"
LOO_FILE = "model_weights.pt"
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
        whether it is trained alone, in a series or in another order. It may leave out ``seed``.
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
        Recorded; drawn, or taken from the directory, if None. A directory that dattri made
        records none: it is continued with the seed it was made with.

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
        "subset_dir_map": {i: str((path / str(i)).resolve()) for i in range(total)},
    }
    begun = next((i for i in range(total) if (path / str(i) / INDICES).is_file()), None)
    if begun is not None and not (path / METADATA).is_file():
        if seed is None:
            raise TaskError(
                f"{path} holds subsets but no {METADATA}, as dattri leaves it when it is killed; "
                "say the seed that it was made with"
            )
        _settle_subset(path / str(begun) / INDICES, _draw(seed + begun, len(examples), size))
    seed = _settle(path, metadata, seed)
    with Progress(num_subsets * num_runs_per_subset, "retraining", "model") as progress:
        for i in range(first, first + num_subsets):
            subset = _draw(seed + i, len(examples), size)
            _settle_subset(path / str(i) / INDICES, subset)
            for j in range(num_runs_per_subset):
                _train(
                    path / str(i) / f"model_weights_{j}.pt",
                    train_func,
                    subset_loader(dataloader, examples[subset], shuffle=True),
                    seed + i * num_runs_per_subset + j,
                    kwargs,
                )
                progress.advance()


def _draw(seed: int, num_examples: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).choice(num_examples, size, replace=False)


def retrain_loo(
    train_func: TrainFunction,
    dataloader: DataLoader[Any],
    path: str | Path,
    indices: Sequence[int] | None = None,
    seed: int | None = None,
    *,
    num_runs: int = 1,
    **kwargs: Any,
) -> None:
    """Retrain without single examples, all models with the same random numbers.

    As dattri does, every model gets one seed and the loader's order is not shuffled, so that two
    models differ by the example that one of them lacks, not by their seeds.

    Parameters
    ----------
    train_func, dataloader, path
        As :func:`retrain_lds`. Unlike dattri's, state dicts are saved, not pickled modules.
    indices : sequence of int, optional
        Positions among the loader's examples to leave out in turn; all by default. Further calls
        with other indices add to the directory.
    seed : int, optional
        Of every model; recorded; drawn, or taken from the directory, if None.
    num_runs : int
        Models without each example; run r, ``model_weights_{r}.pt`` after the first, is seeded
        ``seed + r`` whatever is left out, so that means over runs are means over pairs.

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
            loader = subset_loader(dataloader, np.delete(examples, i))
            for run in range(num_runs):
                file = path / f"index_{i}" / (f"model_weights_{run}.pt" if run else LOO_FILE)
                model = _train(file, train_func, loader, seed + run, kwargs)
                if model is not None:
                    _ARCHITECTURES[path.resolve()] = model
            progress.advance()


# What this process trained, so that states read back in it need no architecture again.
_ARCHITECTURES: dict[Path, torch.nn.Module] = {}


def architecture(path: str | Path) -> torch.nn.Module | None:
    """Return a model like those that :func:`retrain_loo` trained in this process, if it did."""
    found = _ARCHITECTURES.get(Path(path).resolve())
    return None if found is None else copy.deepcopy(found)


def read_metadata(path: str | Path, mode: str) -> dict[str, Any]:
    """Read ``metadata.yml``; TaskError if it is missing, unsafe, or of another mode."""
    file = Path(path) / METADATA
    if not file.is_file():
        raise TaskError(f"{path} is not a directory of retrained models: no {METADATA}")
    content = load_yaml(file, TaskError, _Loader)
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


class _Loader(yaml.SafeLoader):
    """Plain YAML, and the paths that dattri's ``retrain_loo`` writes as objects, as strings."""


def _path(loader: Any, _: str, node: Any) -> str:
    return "/".join(loader.construct_sequence(node))


_Loader.add_multi_constructor("tag:yaml.org,2002:python/object/apply:pathlib.", _path)


def _settle(path: Path, metadata: dict[str, Any], seed: int | None) -> int:
    """Write the metadata, or agree with what another call has written; return the seed."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / METADATA
    drawn = secrets.randbits(31) if seed is None else int(seed)
    text = yaml.safe_dump({**metadata, "seed": drawn}, sort_keys=False)
    with whole_file(file, "w", replace=False) as stream:  # the first call decides
        stream.write(text)
    found = read_metadata(path, metadata["mode"])
    for key, value in {**metadata, "seed": seed}.items():
        said = found.get(key)
        unsaid = key == "seed" and None in (said, value)
        if said != value and not unsaid and key not in _FREE:
            raise TaskError(
                f"{path} was made with {key} {said}, not {value}; choose another directory"
            )
    recorded = seed if found.get("seed") is None else found["seed"]
    if recorded is None:
        raise TaskError(f"{file} records no seed, as dattri's do not; say the one it was made with")
    return int(recorded)


_FREE = ("train_func", "subset_dir_map")  # a function may be renamed, a directory moved


def _settle_subset(file: Path, subset: NDArray[np.int64]) -> None:
    """Write a subset, or find it written."""
    if file.is_file():
        if not np.array_equal(read_indices(file), subset):
            raise TaskError(f"{file} holds another subset than the one that seed draws")
        return
    with whole_file(for_file(file), "w") as stream:
        stream.write("\n".join(map(str, subset)))


def _train(
    file: Path,
    train_func: TrainFunction,
    loader: DataLoader[Any],
    seed: int,
    kwargs: dict[str, Any],
) -> torch.nn.Module | None:
    """Train a model, unless a whole file holds it (what a killed process of dattri left is not)."""
    if file.is_file() and zipfile.is_zipfile(file):
        return None
    with seeded(seed):
        model = train_func(loader, **_seed_if_taken(train_func, seed), **kwargs)
    if not isinstance(model, torch.nn.Module):
        raise TaskError(f"train_func returned {type(model).__name__}, not a torch.nn.Module")
    with whole_file(for_file(file)) as stream:
        torch.save(model.state_dict(), stream)
    return model


def _seed_if_taken(function: TrainFunction, seed: int) -> dict[str, int]:
    parameters = inspect.signature(function).parameters.values()
    taken = any(part.name == "seed" or part.kind is part.VAR_KEYWORD for part in parameters)
    return {"seed": seed} if taken else {}

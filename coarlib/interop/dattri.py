"""dattri's call signatures: change ``from dattri.metric import lds`` to this module's.

Arguments and results have dattri 0.3.0's shapes and signs; what differs is written in each
docstring. dattri takes every target to be a loss; where that matters, ``higher_is_better=True``
says that it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coarlib import scoring
from coarlib.errors import ScoringError, TaskError
from coarlib.loading import load_pt
from coarlib.retraining.directory import (
    INDICES,
    architecture,
    read_indices,
    read_metadata,
    retrain_lds,
    retrain_loo,
)
from coarlib.retraining.loaders import sampled_examples, subset_loader
from coarlib.scoring.score_files import read_tensors
from coarlib.statistics.arrays import as_array

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = [
    "brittleness",
    "calculate_lds_ground_truth",
    "calculate_loo_ground_truth",
    "flip_label",
    "lds",
    "load_benchmark",
    "loo_corr",
    "mislabel_detection_auc",
    "retrain_lds",
    "retrain_loo",
]

DEFAULT_SEARCH_SPACE = range(0, 200, 20)


def lds(score: Any, ground_truth: tuple[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear datamodeling score of each test sample.

    Parameters
    ----------
    score : real [N, T]
        High = helpful for the target, as dattri's attributors return.
    ground_truth : (real [M, T], int [M, k])
        Target values of M retrained models, higher = better (``calculate_lds_ground_truth`` has
        negated losses already), and the training examples of each; a list of index lists of
        different lengths is accepted too.

    Returns
    -------
    correlation, p_value : tensors [T] of the dtype of ``score``
        Unlike dattri's, sums are exact before ranking, so that equal sums tie.
    """
    scores = as_array(score, "score")
    values, indices = ground_truth
    masks = scoring.masks_from_indices(_as_lists(indices), scores.shape[0])
    result = scoring.lds(scores, masks, values, interval=False)
    return _tensor(result.correlation, score), _tensor(result.p_value, score)


def loo_corr(
    score: Any, ground_truth: tuple[Any, Any], *, higher_is_better: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pearson correlation of scores with leave-one-out target values.

    Parameters
    ----------
    score : real [N, T]
    ground_truth : (real [K, T], integer-valued [K])
        Target values of K models, each trained without one example, and which one. Unlike dattri,
        which ignores the indices, row k is compared with the score of example ``indices[k]``.
    higher_is_better : bool
        False (as dattri assumes): targets are losses, and helpful examples, when removed, raise
        them.

    Returns
    -------
    correlation, p_value : tensors [T] of the dtype of ``score``
    """
    values, indices = ground_truth
    removed = as_array(indices, "indices")
    if (removed != np.rint(removed)).any():
        raise ScoringError("the removed indices are not whole numbers")
    result = scoring.loo_corr(
        score, removed.astype(np.int64), values, higher_is_better=higher_is_better
    )
    return _tensor(result.r, score), _tensor(result.p, score)


def mislabel_detection_auc(
    score: Any, ground_truth: Any
) -> tuple[float, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """AUC of finding mislabelled examples by self-attribution (high = suspicious).

    Returns
    -------
    auc : float
        Unlike dattri's, exact under ties: scores that are all equal have an AUC of 0.5.
    fpr, tpr, thresholds : tensors [D + 1]
        As scikit-learn's ``roc_curve``; D is the number of distinct scores.
    """
    found = scoring.mislabel_detection_auc(score, ground_truth)
    return found.auc, (
        torch.from_numpy(found.fpr),
        torch.from_numpy(found.tpr),
        torch.from_numpy(found.thresholds),
    )


def flip_label(
    label: Any, label_space: Any = None, p: float = 0.1, *, seed: int = 0
) -> tuple[Any, list[int]]:
    """Flip ``int(p * n)`` labels; unlike dattri's, seeded, and arrays work as tensors do.

    Returns
    -------
    flipped : as ``label``
    indices : list of int
        Which were flipped.
    """
    flipped, indices = scoring.flip_label(label, p, label_space, seed=seed)
    return flipped, indices.tolist()


def brittleness(  # noqa: PLR0917 - the signature is dattri's
    train_loader: DataLoader[Any],
    test_loader: DataLoader[Any],
    scores: Any,
    train_func: Callable[[DataLoader[Any]], torch.nn.Module],
    eval_func: Callable[[torch.nn.Module, DataLoader[Any]], torch.Tensor],
    device: torch.device | str = "cpu",
    search_space: Sequence[int] | None = None,
) -> int | None:
    """Smallest number of top-scored training examples whose removal flips one test prediction.

    Parameters
    ----------
    train_loader : DataLoader
        With any sampler; the scores are of its examples in the order of ``sampler.indices``, or of
        the dataset.
    test_loader : DataLoader
        Of one test sample ``(x, label)``.
    scores : real [N]
    train_func, eval_func
        ``train_func(loader) -> model``; ``eval_func(model, test_loader) -> predicted label``.
    device : torch.device or str
    search_space : sequence of int, ascending
        Sizes to try; by default 0, 20, …, 180.

    Returns
    -------
    int or None
        None if no size flips the prediction. :func:`coarlib.scoring.brittleness` does many test
        samples at once.
    """
    column = as_array(scores, "scores").reshape(-1)
    examples = sampled_examples(train_loader)
    if len(column) != len(examples):
        raise ScoringError(
            f"scores are of {len(column)} examples, but the loader has {len(examples)}"
        )
    label = torch.cat([batch[1].reshape(-1) for batch in test_loader])
    if label.numel() != 1:
        raise ScoringError(
            f"the test loader holds {label.numel()} samples; this function takes one "
            "(coarlib.scoring.brittleness takes many)"
        )

    highest = np.argsort(column)[::-1]
    for size in DEFAULT_SEARCH_SPACE if search_space is None else search_space:
        if size > len(column):
            continue
        # A set's order is what dattri's loader follows; it is the same for the same numbers.
        kept = list(set(examples.tolist()) - set(examples[highest[:size]].tolist()))
        model = train_func(subset_loader(train_loader, kept)).to(device).eval()
        if eval_func(model, test_loader).item() != label.item():
            return int(size)
    return None


def calculate_lds_ground_truth(
    target_func: Callable[[Path, DataLoader[Any]], torch.Tensor],
    retrain_dir: str | Path,
    test_dataloader: DataLoader[Any],
    *,
    higher_is_better: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the models of a ``retrain_lds`` directory, dattri's or ours, moved or not.

    Parameters
    ----------
    target_func : callable (checkpoint path, test loader) -> [T]
    retrain_dir : str or Path
    test_dataloader : DataLoader
    higher_is_better : bool
        False (as dattri assumes): the target is a loss, so values are negated. True: kept.

    Returns
    -------
    values : float32 tensor [M, T]
        Mean over runs; higher = better.
    indices : int64 tensor [M, k]

    Raises
    ------
    TaskError
        If the directory is not one, or a subset or model is missing.
    """
    path = Path(retrain_dir)
    metadata = read_metadata(path, "lds")
    values, indices = [], []
    for i in range(metadata["num_subsets"]):
        folder = path / str(i)  # not the map's entry, which dattri wrote relative to elsewhere
        indices.append(torch.from_numpy(read_indices(folder / INDICES)))
        runs = []
        for j in range(metadata["num_runs_per_subset"]):
            file = folder / f"model_weights_{j}.pt"
            if not file.is_file():
                raise TaskError(f"{file} is missing; the same call of retrain_lds trains the rest")
            runs.append(_target(target_func(file, test_dataloader)))
        values.append(_mean(runs))
    result = torch.stack(values)
    return result if higher_is_better else -result, torch.stack(indices)


def calculate_loo_ground_truth(
    target_func: Callable[[Any, DataLoader[Any]], torch.Tensor],
    retrain_dir: str | Path,
    test_dataloader: DataLoader[Any],
    *,
    model: torch.nn.Module | None = None,
    allow_pickle: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the models of a ``retrain_loo`` directory, dattri's or ours.

    Parameters
    ----------
    target_func : callable
        ``(model, test loader) -> [T]``, as dattri documents it, gets each model in evaluation
        mode. Where its first argument is called a path or checkpoint (``ckpt_path``), it gets the
        file instead.
    retrain_dir : str or Path
    test_dataloader : DataLoader
    model : nn.Module, optional
        Gets each state in turn. Without it, the architecture is the one that :func:`retrain_loo`
        trained in this process.
    allow_pickle : bool
        Load whole modules as dattri pickles them. A pickle runs code: only for files you trust.

    Returns
    -------
    values : float32 tensor [K, T]
        Mean over runs, neither negated nor relative to the full model: :func:`loo_corr` needs
        neither, and takes ``higher_is_better``.
    removed : float32 tensor [K]
        Which example each model lacks, ascending.

    Raises
    ------
    TaskError
        If the directory is not one, holds no model, or there is no architecture for its states.
    """
    read_metadata(retrain_dir, "loo")
    found = {
        int(folder.name.removeprefix("index_")): sorted(folder.glob("model_weights*.pt"))
        for folder in Path(retrain_dir).glob("index_*")
    }
    found = {index: files for index, files in found.items() if files}
    if not found:
        raise TaskError(f"{retrain_dir} holds no retrained models (index_*/model_weights.pt)")
    by_path = _takes_path(target_func)
    values = []
    for _, files in sorted(found.items()):
        subjects = (f if by_path else _loaded(f, model, retrain_dir, allow_pickle) for f in files)
        values.append(_mean([_target(target_func(each, test_dataloader)) for each in subjects]))
    return torch.stack(values), torch.tensor(sorted(found), dtype=torch.float32)


def load_benchmark(
    model: str,
    dataset: str,
    metric: str,
    download_path: str | Path = "~/.dattri",
    redownload: bool = False,
) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Read a benchmark that dattri has downloaded; nothing is fetched.

    Parameters
    ----------
    model, dataset : str
        ``"mlp"`` and ``"mnist"``, for example.
    metric : {"lds", "loo"}
    download_path : str or Path
        dattri's, with ``benchmark/{dataset}_{model}/``.
    redownload : bool
        Not possible here.

    Returns
    -------
    inputs : dict
        ``models_full`` and ``models_half``, files of states in order. dattri's own model, data and
        functions are not among them.
    ground_truth : (target values [M, T], indices)
        As :func:`lds` and :func:`loo_corr` take them.

    Raises
    ------
    ScoringError
        If a file is missing or damaged, or is to be downloaded.
    """
    folder = Path(download_path).expanduser() / "benchmark" / f"{dataset}_{model}"
    files = [folder / metric / f"{part}_{metric}.pt" for part in ("target_values", "indices")]
    missing = [file for file in files if not file.is_file()]
    if redownload or missing:
        raise ScoringError(
            f"nothing is downloaded here ({missing[0] if missing else folder} is asked for): let "
            f"dattri fetch {dataset}_{model}, or say the download_path where it is"
        )
    inputs = {
        name: sorted(
            (folder / name).glob("*/model_weights_0.pt"), key=lambda file: int(file.parent.name)
        )
        for name in ("models_full", "models_half")
    }
    return inputs, (read_tensors(files[0]), read_tensors(files[1]))


def _takes_path(function: Callable[..., Any]) -> bool:
    """Whether a target function documents a checkpoint's path as its first argument."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    words = ("" if first is None else f"{first.name} {first.annotation}").lower()
    return any(word in words for word in ("path", "ckpt", "checkpoint", "file"))


def _loaded(
    file: Path, model: torch.nn.Module | None, retrain_dir: str | Path, allow_pickle: bool
) -> torch.nn.Module:
    try:
        state = load_pt(
            file,
            TaskError,
            read=lambda path: torch.load(path, map_location="cpu", weights_only=not allow_pickle),
        )
    except Exception as error:  # torch raises many kinds for a pickled or foreign file
        reason = " ".join(str(error).split())[:120]
        raise TaskError(
            f"{file} is not a state dict of tensors; if it is a whole module as dattri saves them, "
            f"and you trust it, allow_pickle=True loads it ({reason})"
        ) from error
    if isinstance(state, torch.nn.Module):
        return state.eval()
    model = architecture(retrain_dir) if model is None else model
    if model is None:
        raise TaskError(
            f"{file} holds a state, and no architecture: give model=, or a target function of "
            "(ckpt_path, dataloader)"
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TaskError(f"{file} is not a state dict of the model: {reason}") from error
    return model.eval()


def _mean(runs: list[torch.Tensor]) -> torch.Tensor:
    """Mean in dattri's order of additions, so that it is dattri's to the last bit."""
    total = torch.zeros_like(runs[0])
    for run in runs:
        total += run
    return total / len(runs)


def _target(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().float().cpu().reshape(-1)


def _as_lists(indices: Any) -> list[Any]:
    return list(indices) if isinstance(indices, list | tuple) else list(as_array(indices))


def _tensor(values: Any, like: Any) -> torch.Tensor:
    dtype = like.dtype if torch.is_tensor(like) and like.is_floating_point() else torch.float64
    return torch.from_numpy(values).to(dtype)

"""Banks of rows in the directories and files that other programs publish, by name of the format.

What is read is described by each reader, with the version that it was written for. A reader takes
a path and the number of examples (or None) and returns a :class:`ForeignBank`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.interop.banks import completed_beside, read_masks, read_outputs
from coarlib.loading import load_text, parse_json
from coarlib.scoring.score_files import read_values
from coarlib.statistics.arrays import as_array, masks_from_indices

__all__ = ["BANK_FORMATS", "ForeignBank"]

_TRAK_EXAMPLES, _TRAK_SUBSETS, _TRAK_SEED = 5000, 20, 42


@dataclass(frozen=True)
class ForeignBank:
    """Rows that others made.

    Attributes
    ----------
    masks : bool or 0/1 [M, N]
    outputs : real [M, T] or [M, R, T]
    notes : str
        What to know about the targets; kept with the store.
    completed : bool [M] or None
        Which rows were measured; None for all.
    """

    masks: NDArray[Any]
    outputs: NDArray[Any]
    notes: str
    completed: NDArray[np.bool_] | None = None


def _trak(path: Path, num_examples: int | None) -> ForeignBank:
    """TRAK's tutorial (traker 0.3.2): ``mask.npy`` and ``val_margins.npy``, or its 20 subsets.

    The file ``lds_outputs_per_subset.pt`` comes without masks: the notebook draws them with seed
    42 from NumPy's first generator.
    """
    alone = path / "lds_outputs_per_subset.pt"
    if not (path / "mask.npy").exists() and alone.is_file():
        drawn, every = np.random.RandomState(_TRAK_SEED), range(_TRAK_EXAMPLES)
        half = _TRAK_EXAMPLES // 2
        subsets = [drawn.choice(every, half, replace=False) for _ in range(_TRAK_SUBSETS)]
        masks = masks_from_indices(subsets, _TRAK_EXAMPLES)
        return ForeignBank(masks, read_outputs(alone), "TRAK's tutorial; margins of 20 halves")
    masks = read_masks(_one_of(path, "mask.npy", "masks.npy"), num_examples)
    return ForeignBank(masks, read_outputs(_one_of(path, "val_margins.npy", "margins.npy")), "TRAK")


def _datamodels(path: Path, num_examples: int | None) -> ForeignBank:
    """A directory of datamodels' workers: masks, margins and ``_completed.npy``."""
    masks = _one_of(path, "masks.npy", "mask.npy")
    outputs = _one_of(path, "margins.npy", "test_margins.npy", "val_margins.npy")
    done = completed_beside(masks)
    return ForeignBank(read_masks(masks, num_examples), read_outputs(outputs), "datamodels", done)


def _kronfluence(path: Path, num_examples: int | None) -> ForeignBank:
    """An example of kronfluence 1.0.1: ``masks.pt`` and ``margins.pt`` or ``losses.pt``."""
    masks = read_masks(_one_of(path, "masks.pt"), num_examples)
    outputs = _one_of(path, "margins.pt", "losses.pt")
    return ForeignBank(masks, read_outputs(outputs), f"kronfluence; outputs are {outputs.stem}")


def _dattri(path: Path, num_examples: int | None) -> ForeignBank:
    """A benchmark of dattri 0.3.0: ``indices_lds.pt`` and ``target_values_lds.pt``."""
    folder = path / "lds" if (path / "lds").is_dir() else path
    masks = read_masks(_one_of(folder, "indices_lds.pt"), num_examples)
    return ForeignBank(masks, read_outputs(_one_of(folder, "target_values_lds.pt")), "dattri")


def _context_cite(path: Path, num_examples: int | None) -> ForeignBank:
    """What a ContextCiter of context-cite 0.0.4 keeps: ``reg_masks`` and ``reg_logit_probs``.

    In an ``.npz`` (``np.savez(FILE, reg_masks=…, reg_logit_probs=…)``) or ``.pt``. Target 0 is the
    logit of the probability of the whole response, which context-cite fits; targets 1 … are the
    logits of its tokens.
    """
    masks = as_array(read_values(path, "reg_masks"), f"reg_masks of {path}")
    tokens = as_array(read_values(path, "reg_logit_probs"), f"reg_logit_probs of {path}")
    if tokens.ndim != 2 or tokens.dtype.kind != "f":
        raise ScoringError(f"reg_logit_probs of {path} must be real numbers [masks, tokens]")
    total = -np.logaddexp(0, -tokens.astype(np.float64)).sum(1)  # log probability of the response
    with np.errstate(divide="ignore"):
        whole = total - np.log(-np.expm1(total))
    outputs = np.column_stack([whole, tokens]).astype(np.float32)
    return ForeignBank(masks, outputs, "context-cite; target 0 is the response, others its tokens")


def _stride(path: Path, num_examples: int | None) -> ForeignBank:
    """A file of STRIDE's LDS data (2026): JSON lines of ``train_subset`` and ``test_loss``.

    Subsets are of a pool of examples; a line with ``_meta`` holds the pool's indices, so N need
    not be said.
    """
    subsets, losses = [], []
    for number, line in enumerate(load_text(path, ScoringError).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        content = parse_json(line, where, ScoringError)
        if isinstance(content, dict) and "_meta" in content:
            meta = content["_meta"] if isinstance(content["_meta"], dict) else content
            num_examples = num_examples or _pool_size(meta)
            continue
        try:
            subsets.append(as_array(content["train_subset"], f"train_subset of {where}"))
            losses.append(as_array(content["test_loss"], f"test_loss of {where}"))
        except (KeyError, TypeError) as error:
            raise ScoringError(f"{where} has no train_subset and test_loss") from error
        if losses[-1].ndim != 1 or losses[-1].shape != losses[0].shape:
            raise ScoringError(
                f"{where} has test losses {list(losses[-1].shape)}, the first line "
                f"{list(losses[0].shape)}"
            )
    if not subsets:
        raise ScoringError(f"{path} holds no subsets")
    if num_examples is None:
        raise ScoringError(f"{path} does not say how many examples its pool has: give num_examples")
    masks = masks_from_indices(subsets, num_examples)
    return ForeignBank(masks, np.stack(losses).astype(np.float32), "STRIDE; outputs are losses")


def _pool_size(meta: Mapping[str, Any]) -> int | None:
    """Return how many examples the pool has that a header describes."""
    for key, value in meta.items():
        if "pool" in key and isinstance(value, list) and value:
            return len(value)
    for key, value in meta.items():
        if "pool" in key and type(value) is int and value > 0:
            return value
    return None


def _one_of(folder: Path, *names: str) -> Path:
    if not folder.is_dir():
        raise ScoringError(f"{folder} is no directory; one with {names[0]} is needed")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ScoringError(f"{folder} holds no {' or '.join(names)}")


BANK_FORMATS: Mapping[str, Callable[[Path, int | None], ForeignBank]] = MappingProxyType(
    {
        "trak": _trak,
        "datamodels": _datamodels,
        "kronfluence": _kronfluence,
        "dattri": _dattri,
        "context-cite": _context_cite,
        "stride": _stride,
    }
)
"""Readers by name of the format."""

"""Banks of retrained models that others made, as stores, and back.

A bank is M subsets of N training examples and the outputs measured on each: the TRAK tutorial's
and datamodels' ``mask.npy`` and ``val_margins.npy``, quanda's ``lds_subsets.yaml``, dattri's ground
truth (see :mod:`coarlib.interop.dattri`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError, StoreError
from coarlib.files import whole_directory, whole_file
from coarlib.loading import load_npy, load_text
from coarlib.retraining.directory import INDICES, read_indices, read_metadata
from coarlib.scoring.score_files import numbered_files, read_tensors, read_values
from coarlib.statistics.arrays import as_array, blocks, masks_from_indices
from coarlib.store import RowWriter, Store, initialize, take_rows
from coarlib.store.create import move_into_place
from coarlib.store.spec import ArraySpec, StoreSpec

__all__ = [
    "completed_beside",
    "quanda_checkpoints",
    "read_masks",
    "read_outputs",
    "read_quanda_logits",
    "read_quanda_subsets",
    "write_bank",
    "write_quanda_subsets",
]

_BLOCK_BYTES = 64 * 2**20


def write_bank(
    path: str | Path,
    masks: Any,
    outputs: Any,
    *,
    x_name: str = "masks",
    y_name: str = "test_margins",
    notes: str = "",
    completed: Any = None,
) -> Store:
    """Make a store of subsets and outputs that are there already.

    Parameters
    ----------
    path : str or Path
        A new directory, which appears once it is whole; or a store of the same bank.
    masks : bool or 0/1 [M, N]
        True = kept.
    outputs : real [M, …]
        Stored in their own dtype.
    x_name, y_name : str
        Names of the arrays.
    notes : str
        Where the bank comes from; kept in the spec.
    completed : bool [M], optional
        Which rows were measured at all (upstream's ``_completed.npy``); all by default.

    Returns
    -------
    Store
        With these rows completed.

    Raises
    ------
    ScoringError
        If masks are not masks, or the numbers of rows differ.
    StoreError
        If the directory holds something else.
    """
    kept, values = as_array(masks, "masks"), as_array(outputs, "outputs")
    if kept.ndim != 2 or values.ndim < 2 or len(kept) != len(values):
        raise ScoringError(
            f"a bank needs masks [M, N] and outputs [M, …], not {list(kept.shape)} and "
            f"{list(values.shape)}"
        )
    if values.dtype == bool:
        raise ScoringError("outputs are booleans; a bank needs outputs that are numbers")
    for piece in blocks(0 if kept.dtype == bool else len(kept), 1024):
        if not ((kept[piece] == 0) | (kept[piece] == 1)).all():
            raise ScoringError("masks hold values other than 0 and 1; True or 1 means kept")
    if x_name == y_name:
        raise ScoringError(f"masks and outputs cannot both be called {x_name!r}")
    done = np.ones(len(kept), bool) if completed is None else as_array(completed, "completed")
    if done.shape != (len(kept),) or not ((done == 0) | (done == 1)).all() or not done.any():
        raise ScoringError(
            f"completed must be {len(kept)} flags, one a row, and some of them set, not "
            f"{done.dtype} {list(done.shape)}"
        )
    schema = {
        x_name: ArraySpec(np.dtype(bool), kept.shape[1:]),
        y_name: ArraySpec(values.dtype.newbyteorder("="), values.shape[1:]),
    }
    spec, path = StoreSpec(len(kept), schema, notes=notes), Path(path)
    arrays, rows = {x_name: kept, y_name: values}, np.flatnonzero(done)
    if path.exists() and any(path.iterdir()):
        initialize(path, spec)  # this very one, or an error
        store = Store.open(path)
        there = store.completed()[rows]
        _refuse_others(store, arrays, rows[there])
        _write_rows(store, arrays, rows[~there])
        return store
    try:
        with whole_directory(path) as draft:
            initialize(draft / "store", spec)
            _write_rows(Store.open(draft / "store"), arrays, rows)
            move_into_place(draft / "store", path, spec)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error
    return Store.open(path)


Block = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]


def _blocks(
    store: Store, arrays: dict[str, NDArray[Any]], rows: NDArray[np.int64]
) -> Iterator[Block]:
    """Yield some rows, and their arrays as the store has them."""
    for piece in blocks(len(rows), _BLOCK_BYTES // max(1, store.spec.row_bytes)):
        block, schema = rows[piece], store.spec.schema
        yield block, {k: take_rows(v, block).astype(schema[k].dtype) for k, v in arrays.items()}


def _write_rows(store: Store, arrays: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
    with RowWriter(store) as writer:
        for block, values in _blocks(store, arrays, rows):
            writer.write(block, values)


def _refuse_others(store: Store, arrays: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
    """Raise StoreError if completed rows are not those of the bank."""
    for block, values in _blocks(store, arrays, rows):
        for key, wanted in values.items():
            here = take_rows(store.array(key), block)
            same = (here == wanted) | (np.isnan(here) & np.isnan(wanted))
            if len(other := block[~same.reshape(len(block), -1).all(1)]):
                raise StoreError(
                    f"{store.path} holds another bank: {key} differ at row {other[0]}; nothing was "
                    "changed: choose another path"
                )


def completed_beside(*files: str | Path) -> NDArray[np.bool_] | None:
    """Read upstream's flags, ``_completed.npy`` beside the arrays; None if there is none."""
    for file in files:
        flags = Path(file).parent / "_completed.npy"
        if Path(file).is_file() and flags.exists():
            return np.asarray(load_npy(flags, ScoringError) != 0)
    return None


def read_masks(path: str | Path, num_examples: int | None = None) -> NDArray[Any]:
    """Read masks [M, N] from what others wrote.

    Parameters
    ----------
    path : str or Path
        ``.npy``, ``.npz``, ``.pt`` or ``.safetensors`` (masks as booleans or as 0 and 1 of any
        dtype, or index lists [M, k]; a ``.pt`` may hold a list of them), quanda's ``.yaml``, or a
        directory of dattri's ``retrain_lds``.
    num_examples : int, optional
        N; needed for index lists.

    Raises
    ------
    ScoringError
        If the file is missing, is neither, or holds index lists and N is not given.
    TaskError
        If a directory is not dattri's, or lacks a subset.
    """
    path = Path(path)
    if path.is_dir():
        found = read_metadata(path, "lds")
        lists = [read_indices(path / str(i) / INDICES) for i in range(found["num_subsets"])]
        return masks_from_indices(lists, int(found["data_length"]))
    if not path.is_file():
        raise ScoringError(f"there is no file {path}")
    if path.suffix in (".yaml", ".yml"):
        return _from_lists(read_quanda_subsets(path), path, num_examples)
    found = read_values(path)
    if isinstance(found, list | tuple):
        return _from_lists(found, path, num_examples)
    array = as_array(found, str(path))
    if array.ndim != 2:
        raise ScoringError(
            f"{path} holds {'one number' if not array.ndim else f'an array {list(array.shape)}'}, "
            "neither masks [M, N] nor index lists [M, k]"
        )
    if array.dtype == bool and num_examples not in (None, array.shape[1]):
        raise ScoringError(f"{path} holds masks of {array.shape[1]} examples, not {num_examples}")
    if array.dtype == bool or _holds_masks(array, num_examples):
        return array
    return _from_lists(list(array), path, num_examples)


def _holds_masks(array: NDArray[Any], num_examples: int | None) -> bool:
    """Whether numbers are masks: 0 and 1 only, and too many of them a row to be index lists."""
    if array.ndim != 2 or num_examples not in (None, array.shape[1]):
        return False
    return array.shape[1] > 2 and bool(((array == 0) | (array == 1)).all())


def _from_lists(lists: Any, path: Path, num_examples: int | None) -> NDArray[Any]:
    if num_examples is None:
        raise ScoringError(f"{path} holds index lists; say how many examples there are in all")
    return masks_from_indices(lists, num_examples)


def read_outputs(path: str | Path, key: str | None = None) -> NDArray[Any]:
    """Read outputs real [M, T], or [M, R, T] of several runs, from what others wrote.

    Parameters
    ----------
    path : str or Path
        A file as for :func:`coarlib.scoring.score_files.load_scores`; [M] is one target.
    key : str, optional
        Which array of several.

    Raises
    ------
    ScoringError
        If the file cannot be read or does not hold outputs.
    """
    found = as_array(read_values(Path(path), key), str(path))
    values = found[:, None] if found.ndim == 1 else found
    if values.ndim not in (2, 3) or not values.size:
        raise ScoringError(
            f"{path} holds an array of shape {list(values.shape)}, not outputs [M, T], or "
            "[M, runs, T]"
        )
    return values


def read_quanda_subsets(path: str | Path) -> list[NDArray[np.int64]]:
    """Read ``lds_subsets.yaml``, a list of lists of integers, without a YAML parser's minutes.

    Raises
    ------
    ScoringError
        If the file cannot be read or holds anything else.
    """
    path = Path(path)
    text = load_text(path, ScoringError)
    if not text.strip() or re.search(r"[^-\d\s\[\],]", text) or re.search(r"-\d|\d-", text):
        raise ScoringError(f"{path} is not a list of lists of non-negative integers")
    if text.lstrip().startswith("["):  # flow style throughout: [[1, 2], [], [3]]
        inner = text.strip()[1:-1]
        lists, rest = re.findall(r"\[[^\[\]]*\]", inner), re.sub(r"\[[^\[\]]*\]", "", inner)
    else:  # an item is "- [1, 2]" (perhaps over several lines), or "- - 1" and more lines
        rest, *lists = re.split(r"^- ", text, flags=re.MULTILINE)
    if re.search(r"[^\s,]", rest) or not all(part.lstrip()[:1] in ("[", "-") for part in lists):
        raise ScoringError(f"{path} is not a list of lists of non-negative integers")
    blank = (part.translate(_BLANKS) for part in lists)
    return [np.array(part.split(), dtype=np.int64) for part in blank]


_BLANKS = str.maketrans("-[],\n", "     ")


def read_quanda_logits(directory: str | Path) -> NDArray[Any]:
    """Read the logits that quanda's ``cache_subset_logits`` keeps, real [M, T, C].

    Parameters
    ----------
    directory : str or Path
        Of files ``0.pt``, ``1.pt``, …: a dict of subset number to logits of an evaluation batch.

    Raises
    ------
    ScoringError
        If a batch or a subset is missing, or a file holds anything else.
    """
    batches = []
    for file in numbered_files(directory):
        content = read_tensors(file)
        if not isinstance(content, dict) or set(content) != set(range(len(content))):
            raise ScoringError(f"{file} does not hold the logits of subsets 0, 1, 2 …")
        batches.append(np.stack([as_array(content[i], str(file)) for i in range(len(content))]))
    if len({batch.shape[0] for batch in batches}) > 1 or batches[0].ndim != 3:
        raise ScoringError(f"the batches of {directory} are not logits of the same subsets")
    return np.concatenate(batches, axis=1)


def write_quanda_subsets(path: str | Path, subsets: Sequence[Any]) -> None:
    """Write index lists as quanda reads them; the file appears whole."""
    path = Path(path)
    lines = (f"- [{', '.join(map(str, as_array(subset).tolist()))}]\n" for subset in subsets)
    with whole_file(path, "w") as file:
        file.writelines(lines)


def quanda_checkpoints(bench_save_dir: str | Path, name: str) -> list[Path]:
    """Return the model files of quanda's subsets 0, 1, …, in order.

    Raises
    ------
    StoreError
        If there are none, or one in between is missing.
    """
    folder = Path(bench_save_dir) / "ckpt"
    found = {
        int(file.parent.name.rpartition("_")[2]): file
        for file in folder.glob(f"{name}_lds_subset_*/model.safetensors")
    }
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise StoreError(f"{folder} has no model of subset {missing[0]} of {name}")
    return [found[number] for number in sorted(found)]

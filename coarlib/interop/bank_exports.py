"""Stores of retrained models, written as other programs read them.

Every function writes the completed rows, verified first, numbered anew from 0, and returns how many
there were. Existing files of the same names are refused, so nothing is overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from coarlib.errors import ScoringError, StoreError
from coarlib.files import for_file, whole_file
from coarlib.interop.banks import write_quanda_subsets
from coarlib.retraining.checkpoints import Checkpoints
from coarlib.retraining.directory import INDICES, METADATA
from coarlib.store import Store, StoreLike, take_rows
from coarlib.store.added import store_of_output
from coarlib.store.verify import refuse_torn

__all__ = ["FORMATS", "export_datamodels", "export_dattri", "export_quanda", "export_trak"]

_ROWS_AT_ONCE = 1024


def export_trak(
    store: StoreLike, path: str | Path, x_name: str | None = None, y_name: str | None = None
) -> int:
    """Write ``mask.npy`` bool [M, N] and ``val_margins.npy`` [M, T], as the TRAK tutorial has them.

    Outputs of several runs ([M, R, T]) are averaged over the runs, in their own dtype.

    Parameters
    ----------
    store : Store or path
    path : str or Path
        A directory; made if absent.
    x_name, y_name : str, optional
        The store's masks and outputs (added outputs too); by default its own.

    Returns
    -------
    int
        M.

    Raises
    ------
    StoreError
        If no row is completed, or a file is there already.
    TornRowError
        If a row does not match its checksum.
    """
    store, rows = _completed(store, y_name)
    x_name, y_name = store.masks_name(x_name), store.outputs_name(y_name)
    folder = _new_files(path, "mask.npy", "val_margins.npy")
    _save(folder / "mask.npy", store, x_name, rows)
    _save(folder / "val_margins.npy", store, y_name, rows, _mean_over_runs)
    return len(rows)


def export_datamodels(
    store: StoreLike, path: str | Path, x_name: str | None = None, y_name: str | None = None
) -> int:
    """Write masks, outputs and ``_completed.npy`` as datamodels' scripts read them.

    Parameters, result and errors as :func:`export_trak`; the names are those of the store.
    """
    store, rows = _completed(store, y_name)
    x_name, y_name = store.masks_name(x_name), store.outputs_name(y_name)
    folder = _new_files(path, f"{x_name}.npy", f"{y_name}.npy", "_completed.npy")
    _save(folder / f"{x_name}.npy", store, x_name, rows)
    _save(folder / f"{y_name}.npy", store, y_name, rows, _mean_over_runs)
    with whole_file(folder / "_completed.npy") as file:
        np.save(file, np.ones(len(rows), dtype=np.bool_))
    return len(rows)


def export_dattri(
    store: StoreLike,
    path: str | Path,
    checkpoints: str | Path,
    x_name: str | None = None,
    runs: int = 1,
) -> int:
    """Write a directory as dattri's ``retrain_lds`` leaves it.

    ``metadata.yml``, and ``{i}/indices.txt`` and ``{i}/model_weights_{j}.pt`` for subset i and run
    j. dattri follows ``subset_dir_map``, so it holds absolute paths; ours reads a moved directory
    too. No seed is recorded: neither program could draw these subsets again.

    Parameters
    ----------
    store : Store or path
    path : str or Path
    checkpoints : str or Path
        Where :class:`coarlib.retraining.RetrainTask` kept the models.
    x_name : str, optional
    runs : int
        Models a subset.

    Raises
    ------
    TaskError
        If a checkpoint is missing or of another subset.
    StoreError, TornRowError
        As :func:`export_trak`; also if subsets differ in size, which dattri cannot read.
    """
    store, rows = _completed(store, None)
    x_name = store.masks_name(x_name)
    sizes = _subset_sizes(store, x_name, rows)
    if len(set(sizes)) > 1:
        raise StoreError(
            f"the subsets of {store.path} have {min(sizes)} to {max(sizes)} examples; dattri reads "
            "subsets of one size only"
        )
    folder = _new_files(path, METADATA)
    models = Checkpoints(checkpoints, None)
    num_examples = store.spec.schema[x_name].shape[0]
    for number, row, subset in _subsets(store, x_name, rows):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        with whole_file(place / INDICES, "w") as text:
            text.write("\n".join(map(str, subset)))
        for run in range(runs):
            with whole_file(place / f"model_weights_{run}.pt") as file:
                torch.save(models.state(row, run, subset), file)
    metadata = {
        "mode": "lds",
        "data_length": num_examples,
        "train_func": "coarlib",
        "num_subsets": len(rows),
        "subset_ratio": sizes[0] / num_examples,
        "num_runs_per_subset": runs,
        "subset_dir_map": {i: str((folder / str(i)).resolve()) for i in range(len(rows))},
    }
    with whole_file(folder / METADATA, "w") as file:  # last: it says that the rest is there
        file.write(yaml.safe_dump(metadata, sort_keys=False))
    return len(rows)


def export_quanda(
    store: StoreLike,
    path: str | Path,
    name: str,
    *,
    checkpoints: str | Path | None = None,
    x_name: str | None = None,
    logits: str | None = None,
    batch_size: int = 8,
) -> int:
    """Write what quanda's ``LinearDatamodeling`` keeps in its ``bench_save_dir``.

    ``metadata/{name}_metadata/lds_subsets.yaml``; with checkpoints
    ``ckpt/{name}_lds_subset_{i}/model.safetensors`` (run 0) and ``config.json``; with logits
    ``subset_logits/{name}/{b}.pt``, for evaluation batch b a dict of subset number to [batch, C].

    Parameters
    ----------
    store : Store or path
    path : str or Path
    name : str
        quanda's ``id``.
    checkpoints : str or Path, optional
        Where :class:`coarlib.retraining.RetrainTask` kept the models.
    x_name : str, optional
    logits : str, optional
        An output [T, C] or [R, T, C] (run 0 is taken), such as ``coar add_output`` makes.
    batch_size : int
        Of the evaluation; quanda must be run with the same.

    Raises
    ------
    ScoringError
        If the output does not hold logits.
    StoreError, TornRowError, TaskError
        As :func:`export_trak` and :func:`export_dattri`.
    """
    store, rows = _completed(store, logits)
    x_name = store.masks_name(x_name)
    subsets_file = f"metadata/{name}_metadata/lds_subsets.yaml"
    folder = _new_files(path, subsets_file, f"subset_logits/{name}", f"ckpt/{name}_lds_subset_0")
    subsets = []
    for number, row, subset in _subsets(store, x_name, rows):
        subsets.append(subset)
        if checkpoints is not None:
            state = Checkpoints(checkpoints, None).state(row, 0, subset)
            _save_quanda_model(folder / "ckpt" / f"{name}_lds_subset_{number}", state)
    if logits is not None:
        _save_quanda_logits(folder / "subset_logits" / name, store, logits, rows, batch_size)
    write_quanda_subsets(for_file(folder / subsets_file), subsets)
    return len(rows)


FORMATS = ("trak", "datamodels", "dattri", "quanda")


def _completed(store: StoreLike, y_name: str | None) -> tuple[Store, NDArray[np.int64]]:
    """Return the store that holds the output, and its completed rows, verified."""
    store = store_of_output(Store.open(store), y_name)
    rows = store.completed_rows()
    if not len(rows):
        raise StoreError(f"no row of {store.path} is completed; there is nothing to export")
    refuse_torn(store, rows)
    return store, rows


def _new_files(path: str | Path, *names: str) -> Path:
    """Make the directory; StoreError if one of the files is there already."""
    folder = Path(path)
    for name in names:
        if (folder / name).exists():
            raise StoreError(f"{folder / name} is there already; choose another directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {folder}: {error.strerror}") from error
    return folder


def _save(
    file: Path,
    store: Store,
    key: str,
    rows: NDArray[np.int64],
    change: Callable[[NDArray[Any]], NDArray[Any]] = lambda block: block,
) -> None:
    """Write rows of an array as .npy, a block at a time."""
    array = store.array(key)
    one = change(take_rows(array, rows[:1]))
    header = {
        "descr": np.lib.format.dtype_to_descr(one.dtype),
        "fortran_order": False,
        "shape": (len(rows), *one.shape[1:]),
    }
    with whole_file(file) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = change(take_rows(array, rows[start : start + _ROWS_AT_ONCE]))
            stream.write(np.ascontiguousarray(block).tobytes())


def _mean_over_runs(block: NDArray[Any]) -> NDArray[Any]:
    if block.ndim != 3:
        return block
    return np.asarray(block.mean(axis=1, dtype=np.float64).astype(block.dtype))


def _subset_sizes(store: Store, x_name: str, rows: NDArray[np.int64]) -> list[int]:
    masks = store.array(x_name)
    return [int(masks[row].sum()) for row in rows]


def _subsets(
    store: Store, x_name: str, rows: NDArray[np.int64]
) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Number from 0, row and kept examples of each subset."""
    masks = store.array(x_name)
    return [(number, int(row), np.flatnonzero(masks[row])) for number, row in enumerate(rows)]


def _save_quanda_model(folder: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "config.json", "w") as text:
        text.write(json.dumps({}) + "\n")
    with whole_file(folder / "model.safetensors") as file:
        file.write(save(state))


def _save_quanda_logits(
    folder: Path, store: Store, key: str, rows: NDArray[np.int64], batch_size: int
) -> None:
    shape = store.spec.schema[key].shape
    if len(shape) not in (2, 3):
        raise ScoringError(
            f"{key} of {store.path} is {list(shape)} a row, not logits [T, C]; coar add_output can "
            "measure them from the checkpoints"
        )
    values = take_rows(store.array(key), rows)
    values = values if len(shape) == 2 else values[:, 0]
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, values.shape[1], batch_size)):
        batch = torch.from_numpy(np.ascontiguousarray(values[:, start : start + batch_size]))
        with whole_file(folder / f"{number}.pt") as file:
            torch.save({i: part.clone() for i, part in enumerate(batch)}, file)

"""Measuring another output of rows that are there: a worker that fills an added output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError, TaskError, TornRowError
from coarlib.filling.worker import FillOptions, FillReport, fill
from coarlib.store import Store, StoreLike, take_rows
from coarlib.store.added import ROW_DIGESTS, added_path, open_added, stale_rows
from coarlib.store.checksum import row_checksums
from coarlib.store.spec import ArraySpec
from coarlib.task import Task

if TYPE_CHECKING:
    import torch

__all__ = ["add_output"]


def add_output(
    store: StoreLike,
    output: str,
    task: Task,
    rows: NDArray[np.int64],
    device: torch.device,
    *,
    options: FillOptions | None = None,
    dtype: str = "float32",
) -> FillReport:
    """Measure ``output`` for the completed ones of ``rows`` and keep it with the store.

    Parameters
    ----------
    store : Store or path
    output : str
        What to call it; ``task.rows`` returns it under that name.
    task : Task
        One that does not train (:class:`coarlib.retraining.ReevaluateTask` loads checkpoints).
    rows : int64 [K]
        Ascending. Rows that the store has not completed are left out.
    device, options
        As for :func:`coarlib.filling.worker.fill`; any number of workers may share the rows.
        ``options.origin`` says what is measured, and later calls must say the same.
    dtype : str
        Of the stored output.

    Returns
    -------
    FillReport

    Raises
    ------
    TaskError
        If the task would train, does not return ``output``, or lacks a checkpoint.
    StoreError
        If the output was begun by another task or settings, or some of it is stale.
    TornRowError
        If a row of the store does not match its checksum.
    """
    store, options = Store.open(store), options or FillOptions()
    if task.trains:
        raise TaskError(
            f"{type(task).__name__} trains models; another output of rows that are there is "
            "measured from their checkpoints (coarlib.retraining.ReevaluateTask)"
        )
    key = store.mask_key
    if key is None:
        raise StoreError(
            f"{store.path} has no array of masks, so its rows cannot be measured again"
        )
    rows = rows[store.completed_among(rows)]
    if not len(rows):
        raise StoreError(f"none of the rows asked for is completed in {store.path}")
    task.prepare(device)
    measured = _OnStoredRows(store, task, output, key)
    shape = _shape_known(store, output)
    if shape is None:
        shape = measured.rows(rows[:1], np.empty((1, 0), np.bool_))[output].shape[1:]
    made_by = _identity(task, options.origin)
    added = open_added(store, output, ArraySpec(np.dtype(dtype), tuple(shape)), key, made_by)
    stale = np.intersect1d(stale_rows(store, added), rows)
    if len(stale) and not options.rerun:
        raise StoreError(
            f"{output} of {len(stale)} rows of {store.path} is stale: the rows were written anew "
            f"since (the first is {stale[0]}); rerun measures it again"
        )
    return fill(added, measured, rows, device, replace(options, origin=dict(options.origin)))


def _shape_known(store: Store, output: str) -> tuple[int, ...] | None:
    """Shape of the output if an earlier worker has settled it."""
    path = added_path(store, output)
    if not (path / "spec.json").is_file():
        return None
    array = Store.open(path).spec.schema.get(output)
    return None if array is None else array.shape


def _identity(task: Task, origin: Mapping[str, Any]) -> str:
    """Say what measures: task and settings, but not where its checkpoints lie."""
    name = origin.get("task", f"{type(task).__module__}:{type(task).__qualname__}")
    settings = {k: v for k, v in origin.get("settings", {}).items() if k != "checkpoints"}
    return f"{name} {json.dumps(settings, sort_keys=True)}"


class _OnStoredRows(Task):
    """Gives a task the masks that the store's rows have, and says which rows they were."""

    own_masks = True

    def __init__(self, store: Store, task: Task, output: str, mask_key: str) -> None:
        self._store, self._task, self._output, self._key = store, task, output, mask_key
        self.rows_per_batch, self.tolerance = task.rows_per_batch, task.tolerance
        width, wanted = store.spec.schema[mask_key].shape[0], task.num_features
        if wanted is not None and width != wanted:
            raise TaskError(
                f"{mask_key} of {store.path} has {width} features a row but the task has {wanted}"
            )

    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[str, Any]:
        """Measure under the stored masks, once the rows are sure to be whole."""
        stored = {
            key: take_rows(self._store.array(key), indices) for key in self._store.spec.schema
        }
        digests = self._store.checksums()[indices]
        torn = indices[row_checksums(indices, stored) != digests]
        if len(torn):
            raise TornRowError(
                f"row {torn[0]} of {self._store.path} does not match its checksum; verify and "
                "repair it there, and fill it again"
            )
        found = self._task.rows(indices, stored[self._key])
        if self._output not in found:
            raise TaskError(
                f"the task returns {', '.join(found)}, not {self._output}; give the output that "
                "name, or add it under its own"
            )
        return {
            self._key: stored[self._key],
            self._output: found[self._output],
            ROW_DIGESTS: digests,
        }

    def identity(self) -> str | None:
        """Digest of what the task evaluates, if it can tell."""
        return self._task.identity()

    def adopt(self, identity: str | None) -> str | None:
        """Take over the choices of the task that made the rows."""
        return self._task.adopt(identity)

"""Where a fit reads its rows: a store, a .beton file, or arrays in memory.

A row is a mask and the outputs measured under it. Whatever holds them, a source numbers its
*completed* rows 0 … K-1 in ascending order and hands them out as numpy arrays.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from coarlib.errors import BetonError, RegressionError, TornRowError
from coarlib.gradient_passes import PassSums, open_passes, read_passes
from coarlib.gradient_passes.filling import plan_of
from coarlib.scoring.rows import mean_over_runs
from coarlib.statistics.arrays import as_array
from coarlib.store import Store, StoreLike, take_rows
from coarlib.store.added import store_of_output
from coarlib.store.components import read_components
from coarlib.store.identity import all_identities
from coarlib.store.inside import BLOCKS
from coarlib.store.verify import find_torn, refuse_torn

__all__ = ["ArrayRows", "BetonRows", "RowSource", "StoreRows", "open_rows", "verified_note"]

OUTPUT_KINDS = "fiu"
SHOWN_ROWS = 10


class RowSource(Protocol):
    """What moments and scores need of a source of rows."""

    @property
    def description(self) -> str:
        """Where the rows come from."""
        ...

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The number of each completed row."""
        ...

    @property
    def num_features(self) -> int:
        """Width of a mask, N."""
        ...

    @property
    def num_targets(self) -> int:
        """Number of targets, T."""
        ...

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Dtype of the outputs as stored."""
        ...

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of which rows these are and, where that is cheap, of their content."""
        ...

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position (ascending, in 0 … K-1): bool [B, N] and outputs [B, T]."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows that are in memory.

    Parameters
    ----------
    masks : bool (or 0/1) [K, N]
    outputs : real [K, T] or [K], or [K, R, T], whose R runs are averaged
    """

    masks: NDArray[Any]
    outputs: NDArray[Any]
    description: str = "arrays"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", as_array(self.masks, "masks"))
        outputs = as_array(self.outputs, "outputs")
        object.__setattr__(
            self, "outputs", mean_over_runs(outputs) if outputs.ndim == 3 else outputs
        )
        if self.masks.ndim != 2 or len(self.masks) != len(self.outputs) or not self.masks.size:
            raise RegressionError(
                f"masks {list(self.masks.shape)} and outputs {list(self.outputs.shape)} must be "
                "[K, N] and [K, T] with the same number of rows K, at least one"
            )
        if self.outputs.dtype.kind not in OUTPUT_KINDS:
            raise RegressionError(f"outputs must be real numbers, not {self.outputs.dtype}")
        object.__setattr__(self, "masks", as_masks(self.masks, self.description))
        object.__setattr__(self, "outputs", self.outputs.reshape(len(self.outputs), -1))

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The rows' numbers, which are their positions."""
        return np.arange(len(self.masks), dtype=np.int64)

    @property
    def num_features(self) -> int:
        """Number of features N."""
        return int(self.masks.shape[1])

    @property
    def num_targets(self) -> int:
        """Number of targets T."""
        return int(self.outputs.shape[1])

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Dtype of the outputs."""
        return self.outputs.dtype

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of the rows' numbers."""
        return _digest(np.sort(row_ids))

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position."""
        return take_rows(self.masks, positions), take_rows(self.outputs, positions)


class StoreRows:
    """The completed rows of a store, as they are at construction.

    Parameters
    ----------
    store : Store or path
    mask_key, output_key : str, optional
        The arrays of masks and outputs; by default those that the store's spec implies.
    targets : slice
        Which targets (columns of the flattened outputs) to fit.
    """

    def __init__(
        self,
        store: StoreLike,
        mask_key: str | None = None,
        output_key: str | None = None,
        targets: slice = slice(None),
    ) -> None:
        store = store_of_output(Store.open(store), output_key)
        mask_key, output_key = store.masks_name(mask_key), store.outputs_name(output_key)
        if store.spec.schema[output_key].dtype.kind not in OUTPUT_KINDS:
            raise RegressionError(f"array {output_key!r} of {store.path} holds no real numbers")
        self._store, self._targets = store, targets
        self._output_key = output_key
        self._rows = store.completed_rows()
        self._masks, self._outputs = store.array(mask_key), store.array(output_key)

    @property
    def description(self) -> str:
        """The store's path."""
        return str(self._store.path)

    @property
    def components(self) -> list[dict[str, Any]] | None:
        """What the mask entries are, where the store knows it."""
        return read_components(self._store.path)

    @property
    def identities(self) -> list[str]:
        """Of the tasks that made the rows (:meth:`coarlib.task.Task.identity`)."""
        return all_identities(self._store.path)

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The store's completed rows."""
        return self._rows

    @property
    def num_features(self) -> int:
        """Width of a mask, N."""
        return int(np.prod(self._masks.shape[1:]))

    @property
    def num_targets(self) -> int:
        """How many targets are selected, T."""
        width = int(np.prod(self._outputs.shape[1:]))
        return len(range(*self._targets.indices(width)))

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Dtype of the outputs."""
        return self._outputs.dtype

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of the rows' numbers and checksums, and of the target range."""
        rows = np.sort(row_ids)
        checksums = self._store.checksums()[rows] if self._store.has_checksums else rows
        width = int(np.prod(self._outputs.shape[1:]))
        return _digest(rows, checksums, np.array(self._targets.indices(width)))

    def gradient_passes(self) -> PassSums | None:
        """Sum the gradient passes that the store has of these outputs; None if it has none."""
        kept = open_passes(self._store)
        schema = self._store.spec.schema[self._output_key]
        if kept is None or plan_of(kept).output != self._output_key or len(schema.shape) != 1:
            return None
        return read_passes(self._store, self._targets)

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position."""
        rows = self._rows[positions]
        masks = _read_rows(self._masks, rows).reshape(len(rows), -1)
        outputs = _read_rows(self._outputs, rows).reshape(len(rows), -1)
        return as_masks(masks, self.description), outputs[:, self._targets]

    def verify(self, positions: NDArray[np.int64]) -> bool:
        """Compare rows, and all passes and trials, with checksums; False where there are none.

        Raises
        ------
        TornRowError
            If a row or a block of passes or trials does not match.
        """
        if not self._store.has_checksums:
            return False
        for name in BLOCKS:
            if (kept := open_passes(self._store, name)) is not None:
                refuse_torn(kept, kept.completed_rows())
        torn = find_torn(self._store, np.sort(self._rows[positions]))
        if torn:
            shown = ", ".join(map(str, torn[:SHOWN_ROWS])) + (", …" if torn[SHOWN_ROWS:] else "")
            raise TornRowError(
                f"{len(torn)} of the {len(positions)} rows to fit from {self.description} do not "
                f"match their checksums (rows {shown}); `coar verify {self.description}` can "
                "withdraw them, and workers then fill them again"
            )
        return True


def _read_rows(mapped: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Copy rows; a contiguous run is read, not mapped, so that it does not stay in memory."""
    contiguous = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    if not (contiguous and isinstance(mapped, np.memmap) and mapped.filename is not None):
        return take_rows(mapped, rows)
    width = int(np.prod(mapped.shape[1:]))
    offset = mapped.offset + int(rows[0]) * width * mapped.dtype.itemsize
    flat = np.fromfile(mapped.filename, mapped.dtype, len(rows) * width, offset=offset)
    if flat.size != len(rows) * width:
        raise RegressionError(f"{mapped.filename} ends before row {rows[-1]}")
    return flat.reshape(len(rows), *mapped.shape[1:])


class BetonRows:
    """The rows of a .beton written by write_dataset (fields mask, targets, idx).

    Parameters
    ----------
    path : path of the file
    targets : slice
        Which targets to fit.
    """

    def __init__(self, path: str | Path, targets: slice = slice(None)) -> None:
        from coarlib import beton

        self._reader = beton.open(path)
        self._path, self._targets = Path(path), targets
        missing = {"mask", "targets"} - set(self._reader.fields)
        if missing:
            raise BetonError(
                f"{path} has no field {' or '.join(sorted(missing))}; run_regression reads files "
                "that write_dataset made (fields mask, targets, idx)"
            )
        self._first = self._reader.rows(slice(0, min(1, len(self._reader))))
        if len(self._reader) and self._first["targets"].dtype.kind not in OUTPUT_KINDS:
            raise BetonError(f"field targets of {path} does not hold real numbers")

    @property
    def description(self) -> str:
        """The file's path."""
        return str(self._path)

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """Positions in the file."""
        return np.arange(len(self._reader), dtype=np.int64)

    @property
    def num_features(self) -> int:
        """Width of a mask, N."""
        return int(np.prod(self._first["mask"].shape[1:]))

    @property
    def num_targets(self) -> int:
        """How many targets are selected, T."""
        width = int(np.prod(self._first["targets"].shape[1:]))
        return len(range(*self._targets.indices(width)))

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Dtype of the outputs."""
        return np.dtype(self._first["targets"].dtype)

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of the rows' numbers, the file's size and time, and the target range."""
        stat = self._path.stat()
        file = np.array([stat.st_size, stat.st_mtime_ns])
        width = int(np.prod(self._first["targets"].shape[1:]))
        return _digest(np.sort(row_ids), file, np.array(self._targets.indices(width)))

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position."""
        contiguous = len(positions) > 0 and positions[-1] - positions[0] + 1 == len(positions)
        wanted = slice(int(positions[0]), int(positions[-1]) + 1) if contiguous else positions
        found = self._reader.rows(wanted, names=("mask", "targets"))
        masks = np.asarray(found["mask"]).reshape(len(positions), -1)
        outputs = np.asarray(found["targets"]).reshape(len(positions), -1)
        return as_masks(masks, self.description), outputs[:, self._targets]


def _digest(*arrays: NDArray[Any]) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def as_masks(masks: NDArray[Any], where: str) -> NDArray[np.bool_]:
    """Return masks as bool; numbers other than 0 and 1 are an error."""
    if masks.dtype == np.bool_:
        return masks
    kept = masks != 0
    if not np.array_equal(kept, masks):
        raise RegressionError(f"the masks of {where} hold values other than 0 and 1")
    return kept


def open_rows(
    path: str | Path,
    mask_key: str | None = None,
    output_key: str | None = None,
    targets: slice = slice(None),
) -> RowSource:
    """Open a store directory or a .beton file for fitting.

    Parameters
    ----------
    path : str or Path
    mask_key, output_key : str, optional
        Array names of a store (a .beton names its own fields).
    targets : slice
        Which targets to fit.

    Raises
    ------
    StoreError, BetonError, RegressionError
        If it is neither, is damaged, or leaves the choice of an array open.
    """
    path = Path(path)
    if path.is_dir():
        return StoreRows(Store.open(path), mask_key, output_key, targets)
    if not path.is_file():
        raise RegressionError(f"{path} does not exist; rows come from a store or a .beton")
    return BetonRows(path, targets)


def verified_note(source: RowSource, positions: NDArray[np.int64]) -> str:
    """Verify rows before a fit; returns a line for people.

    Raises
    ------
    TornRowError
        If a row does not match its checksum.
    """
    started = time.monotonic()
    if not (isinstance(source, StoreRows) and source.verify(positions)):
        return f"{source.description} carries no row checksums: its rows are taken as they are"
    return f"{len(positions)} rows match their checksums ({time.monotonic() - started:.1f} s)"

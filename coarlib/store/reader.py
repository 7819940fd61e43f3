"""Reading a store: arrays by name, and which of their rows are committed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coarlib.devices import resolve_device
from coarlib.display import card, strip
from coarlib.errors import SpecError, StoreError, nearest
from coarlib.masks import MaskDesign, draw
from coarlib.store.components import read_components
from coarlib.store.create import initialize, read_spec
from coarlib.store.design import read_design, read_labels
from coarlib.store.identity import recorded_identities
from coarlib.store.layout import (
    CHECKSUMS,
    COMPLETED,
    DESIGN_MASKS,
    SPEC_FILE,
    ArrayFile,
    array_path,
    arrays_of,
)
from coarlib.store.spec import ArraySpec, LayoutOfTask, StoreSpec, mask_width, spec_of_layout

if TYPE_CHECKING:
    import torch

DEFAULT_BLOCK_BYTES = 64 * 2**20
MUCH, READERS = 32 * 2**20, 4  # bytes that several threads copy
StoreLike: TypeAlias = "Store | str | Path"


def _as_path(path: str | Path) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise StoreError(f"a store is named by its path, not by {type(path).__name__}") from error


class HasLayout(Protocol):
    """What :meth:`Store.create` asks of a task."""

    def prepare(self, device: torch.device) -> None:
        """Load what is measured."""

    def layout(self) -> LayoutOfTask:
        """Return the width of masks and the arrays of outputs."""
        ...


@dataclass(frozen=True)
class Store:
    """A store directory, open for reading.

    Attributes
    ----------
    path : Path
    spec : StoreSpec
        The store's own spec, or the one its arrays imply where it was made by COAR or datamodels.
    has_checksums : bool
        Whether rows carry checksums; False for a directory that coarlib did not make.
    """

    path: Path
    spec: StoreSpec
    has_checksums: bool

    def __repr__(self) -> str:
        done = int(self.completed().sum())
        arrays = ", ".join(
            f"{key} {array.dtype.name} {list(array.shape)}"
            for key, array in self.spec.schema.items()
        )
        return (
            f"Store {self.path}\n{done:,} of {self.num_models:,} rows completed\n"
            f"a row: {arrays} ({self.spec.row_bytes:,} bytes)"
        )

    def _repr_html_(self) -> str:
        return card(repr(self), strip(self.completed()))

    @classmethod
    def open(cls, path: StoreLike) -> Store:
        """Open a store; an open one is returned as it is.

        Raises
        ------
        StoreError
            If something is missing or damaged: arrays' headers and every settings file are looked
            at, but the files of masks, which may be large.
        """
        if isinstance(path, Store):
            return path
        path = _as_path(path)
        if not path.is_dir():
            raise StoreError(f"{path} is not a directory; initialize_store makes a store")
        if not (path / SPEC_FILE).is_file():
            return cls._open_foreign(path)
        spec = read_spec(path)
        store = cls(path, spec, has_checksums=True)
        for key, array in arrays_of(spec).items():
            store._check(key, array)
        _check_settings(path, spec)
        return store

    @classmethod
    def create(
        cls,
        path: str | Path,
        task: HasLayout,
        rows: int,
        keep_prob: float | None = None,
        *,
        design: MaskDesign | Mapping[str, Any] | None = None,
        seed: int = 0,
        notes: str = "",
        device: str = "auto",
    ) -> Store:
        """Create a store for the rows of a task, or open the one that is there already.

        Parameters
        ----------
        path : str or Path
            The directory; its parents are created.
        task
            Prepared here; its ``layout()`` says how wide masks are, and the names, dtypes and
            shapes of the outputs.
        rows : int
            How many rows the store holds; :func:`coarlib.store.grow.grow` adds more later.
        keep_prob : float
            Each feature is kept with this probability, independently.
        design : MaskDesign or mapping, optional
            Any other way of drawing masks, instead of ``keep_prob`` and ``seed``.
        seed : int
            Of the masks.
        notes : str
            Free text, kept with the store.
        device : str
            Where the task is prepared, so that it can tell its layout.

        Raises
        ------
        StoreError
            If the directory holds something else, or a store with another spec.
        SpecError
            If rows, masks and task do not fit together.
        """
        if (design is None) == (keep_prob is None):
            raise SpecError("say how masks are drawn by one of keep_prob and design")
        if not callable(getattr(task, "layout", None)):
            raise SpecError(f"a store is made for the rows of a Task, not of {type(task).__name__}")
        path = _as_path(path)
        if design is None:
            design = MaskDesign(keep_prob=keep_prob, seed=seed)
        task.prepare(resolve_device(device))
        initialize(path, spec_of_layout(task.layout(), rows, design, notes))
        return cls.open(path)

    @classmethod
    def _open_foreign(cls, path: Path) -> Store:
        """Open a COAR or datamodels directory, whose arrays are its only spec."""
        if array_path(path, CHECKSUMS).exists():
            raise StoreError(
                f"{path} is a damaged store: it has {CHECKSUMS}.npy but no {SPEC_FILE}; put its "
                f"{SPEC_FILE} back (a store initialised alike elsewhere has the same)"
            )
        if not array_path(path, COMPLETED).is_file():
            within = sorted(file.parent for file in path.glob(f"*/{SPEC_FILE}"))
            there = f"; give {' or '.join(map(str, within[:3]))}" if within else ""
            raise StoreError(
                f"{path} is not a store: it has neither {SPEC_FILE} nor {COMPLETED}.npy{there}"
            )
        rows = ArrayFile.read(array_path(path, COMPLETED)).shape[0]
        schema = {}
        for file in sorted(path.glob("[!_.]*.npy")):
            array = ArrayFile.read(file)
            if array.shape[0] != rows:
                raise StoreError(
                    f"{file} has {array.shape[0]} rows, {COMPLETED}.npy of the same store {rows}"
                )
            schema[file.stem] = ArraySpec(array.dtype, array.shape[1:])
        if not schema:
            raise StoreError(f"{path} is not a store: it holds no arrays besides {COMPLETED}.npy")
        return cls(path, StoreSpec(rows, schema), has_checksums=False)

    def _check(self, key: str, wanted: ArraySpec) -> None:
        file = ArrayFile.read(array_path(self.path, key))
        # More rows than the spec says is a store that is being grown.
        few = file.shape[0] < self.num_models
        if few or (file.dtype, file.shape[1:]) != (wanted.dtype, wanted.shape):
            raise StoreError(
                f"{file.path} is {file.dtype.name} {list(file.shape)}, which is not what "
                f"{self.path / SPEC_FILE} describes"
            )

    @property
    def num_models(self) -> int:
        """How many rows the store has (M)."""
        return self.spec.num_models

    @property
    def design(self) -> MaskDesign | None:
        """The mask design of the spec, or the one its first worker settled; None if neither."""
        return read_design(self.path, self.spec)

    @property
    def mask_key(self) -> str | None:
        """The array of masks: the design's, else the one the spec implies; None if none is."""
        design = self.design
        return self.spec.mask_key if design is None else design.array

    def masks_name(self, given: str | None = None) -> str:
        """Return the array of masks: ``given``, or the store's own.

        Raises
        ------
        StoreError
            If the store has no such array, or leaves the choice open.
        """
        return self._one(given or self.mask_key, "masks (x_name)")

    def outputs_name(self, given: str | None = None) -> str:
        """Return the array of outputs; see :meth:`masks_name`."""
        return self._one(given or self.spec.output_key, "outputs (y_name)")

    def _one(self, key: str | None, what: str) -> str:
        if key is None:
            raise StoreError(
                f"the arrays of {self.path} ({', '.join(self.spec.schema)}) leave open which one "
                f"holds the {what}; name it"
            )
        return self._known(key)

    def _known(self, key: str) -> str:
        if key not in self.spec.schema:
            raise StoreError(
                f"{self.path} has no array {key!r} (it has {', '.join(self.spec.schema)})"
                f"{nearest(key, self.spec.schema)}"
            )
        return key

    def array(self, key: str) -> NDArray[Any]:
        """Map the array ``key`` read-only, ``[num_models, *shape]``, pages fresh from disk.

        Rows that are not committed hold zeros or half-written bytes: select with
        :meth:`completed_rows`.
        """
        self._known(key)
        return self.array_file(key).map(self.num_models)

    def checksums(self) -> NDArray[np.uint64]:
        """Read the digests of all rows as they are now, uint64 [num_models]; 0 = not committed."""
        return self._read(CHECKSUMS)

    def completed(self) -> NDArray[np.bool_]:
        """Read which rows are committed now, bool [num_models]."""
        if self.has_checksums:
            return np.asarray(self.checksums() != 0)
        return np.asarray(self._read(COMPLETED) != 0)

    def completed_among(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Read which of the ascending ``rows`` are committed now, bool [len(rows)].

        Reads only their stretch of the file: cheap enough to ask before every batch.
        """
        if not len(rows):
            return np.zeros(0, np.bool_)
        file = self.array_file(CHECKSUMS if self.has_checksums else COMPLETED)
        first = int(rows[0])
        return np.asarray(file.read_rows(first, int(rows[-1]) + 1)[rows - first] != 0)

    def flags(self) -> NDArray[np.uint8]:
        """Read the bytes of ``_completed`` as they are now, uint8 [num_models]; 1 = completed."""
        return self._read(COMPLETED).view(np.uint8)

    def completed_rows(self) -> NDArray[np.int64]:
        """Read the indices of committed rows as they are now, ascending int64 [K]."""
        return np.flatnonzero(self.completed()).astype(np.int64)

    def _read(self, key: str) -> NDArray[Any]:
        return self.array_file(key).read_rows(0, self.num_models)

    def array_file(self, key: str) -> ArrayFile:
        """Return the file of an array, ours included, its header read afresh."""
        return ArrayFile.read(array_path(self.path, key))

    def blocks(
        self,
        keys: Sequence[str],
        rows: NDArray[np.int64] | None = None,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """Iterate over committed rows in blocks of at most ``max_bytes`` (at least one row).

        Yields
        ------
        (int64 [B], {key: array [B, *shape]})
            Row indices and copies of their values.
        """
        rows = self.completed_rows() if rows is None else rows
        arrays = {key: self.array(key) for key in keys}
        row_bytes = sum(self.spec.schema[key].row_bytes for key in keys)
        count = max(1, max_bytes // max(1, row_bytes))
        for start in range(0, len(rows), count):
            block = rows[start : start + count]
            yield block, {key: take_rows(array, block) for key, array in arrays.items()}

    def draw_masks(self, design: MaskDesign, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Draw the masks of ``rows`` by ``design``, bool [B, N]."""
        if design.from_file:
            return take_rows(self.array_file(DESIGN_MASKS).map(), rows)
        labels = read_labels(self.path) if design.by_class else None
        return draw(design, rows, mask_width(self.spec, design.array), labels)

    def describe(self) -> str:
        """Say in one line what the store holds."""
        arrays = ", ".join(
            f"{key}.npy {(self.num_models, *array.shape)} {array.dtype.name}"
            for key, array in self.spec.schema.items()
        )
        design = self.design
        drawn = "" if design is None else f"; masks by {json.dumps(_short(design.as_json()))}"
        return f"{arrays}, {COMPLETED}.npy ({self.num_models},) bool{drawn}"


def _check_settings(path: Path, spec: StoreSpec) -> None:
    """Compare settings files with their digests, so that no command works on a damaged store."""
    read_design(path, spec)
    read_components(path)
    recorded_identities(path)
    read_labels(path)


def take_rows(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Copy ``rows`` (ascending) of a mapped array; one contiguous read where they are."""
    if not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
        return np.asarray(array[rows])
    found = array[rows[0] : rows[-1] + 1]
    if found.nbytes < MUCH or len(rows) < READERS:
        return np.array(found)
    # Pages of the file and of new memory are brought in one by one: a core alone takes long.
    copy = np.empty(found.shape, found.dtype)
    cuts = np.linspace(0, len(rows), READERS + 1).astype(int)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda a, b: np.copyto(copy[a:b], found[a:b]), cuts[:-1], cuts[1:]))
    return copy


def _short(content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: f"{len(value)} lists" if isinstance(value, list) else value
        for key, value in content.items()
    }

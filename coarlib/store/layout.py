"""What lies where in a store directory, and the .npy files it is made of.

``<key>.npy`` are C-order arrays ``[num_models, *shape]`` (NumPy format 1.0), created sparse;
``_completed.npy`` bool ``[num_models]`` is COAR's flag; ``_checksums.npy`` uint64
``[num_models]`` is ours: a row is committed when its checksum is not zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.loading import DAMAGE, open_regular
from coarlib.store.page_cache import drop_cached_pages
from coarlib.store.spec import ArraySpec, StoreSpec

SPEC_FILE = "spec.json"
DESIGN_FILE = "design.json"
COMPLETED = "_completed"
CHECKSUMS = "_checksums"
DESIGN_MASKS = "_design_masks"
DESIGN_LABELS = "_design_labels"
CLAIMS_DIR = "claims"
WORKERS_DIR = "workers"
FORMAT_VERSION = 2
# From this version on spec.json holds a digest of itself.
SEALED_SINCE = 2
# Of everything in a store that must be on disk before the next step begins.
WRITE_FLAGS = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_DSYNC", os.O_SYNC)

# A header that does not parse may be one that another process is just rewriting (growth).
HEADER_ATTEMPTS = 3
SECONDS_BETWEEN_ATTEMPTS = 0.05

COMPLETED_SPEC = ArraySpec(np.dtype(np.bool_), ())
CHECKSUMS_SPEC = ArraySpec(np.dtype(np.uint64), ())


def array_path(store: Path, key: str) -> Path:
    """Return the file of the array ``key``."""
    return store / f"{key}.npy"


def arrays_of(spec: StoreSpec) -> dict[str, ArraySpec]:
    """Return every array that a new store of ``spec`` holds, ours included."""
    return {**spec.schema, COMPLETED: COMPLETED_SPEC, CHECKSUMS: CHECKSUMS_SPEC}


@dataclass(frozen=True)
class ArrayFile:
    """The header of one .npy file, checked: rows of ``row_bytes`` begin at ``offset``."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * prod(self.shape[1:])

    @classmethod
    def read(cls, path: Path) -> ArrayFile:
        """Read and check the header of ``path``.

        Raises
        ------
        StoreError
            If the file is missing, is not a C-order .npy array of numbers, or is shorter than its
            header says.
        """
        for attempt in range(1, HEADER_ATTEMPTS + 1):
            try:
                shape, fortran, dtype, offset, size = _read_header(path)
                break
            except OSError as error:
                raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
            except DAMAGE as error:
                if attempt == HEADER_ATTEMPTS:
                    reason = str(error).partition("\n")[0]
                    raise StoreError(f"{path} is not a .npy array: {reason}") from error
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        if fortran or dtype.kind not in "biuf" or not shape or min(shape) < 0:
            raise StoreError(f"{path} must be a C-order array of numbers with a row axis")
        wanted = offset + dtype.itemsize * prod(shape)
        if size < wanted:
            raise StoreError(f"{path} is truncated: {size} bytes, its header asks for {wanted}")
        return cls(path, dtype, tuple(shape), offset)

    def map(self, rows: int | None = None) -> NDArray[Any]:
        """Map the array read-only, after dropping cached pages that other nodes may have changed.

        ``rows`` limits the view to the first rows (a store may be growing).
        """
        count = self.shape[0] if rows is None else rows
        try:
            with open(self.path, "rb") as file:
                drop_cached_pages(file.fileno())
                return np.memmap(
                    file, self.dtype, mode="r", offset=self.offset, shape=(count, *self.shape[1:])
                )
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot map {self.path}: {error}") from error

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows ``start`` to ``stop`` (exclusive) as they are now, whoever wrote them."""
        values = np.empty((stop - start, *self.shape[1:]), self.dtype)
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                drop_cached_pages(descriptor)
                self.read_into(descriptor, start, values)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        return values

    def read_into(self, descriptor: int, start: int, values: NDArray[Any]) -> None:
        """Fill C-order ``values`` with the rows from ``start`` on, continuing short reads.

        Raises OSError, or StoreError where the file ends inside them.
        """
        data = values.reshape(-1).view(np.uint8).data
        offset = self.offset + start * self.row_bytes
        while data:
            count = os.preadv(descriptor, [data], offset)
            if not count:
                row = (offset - self.offset) // self.row_bytes
                raise StoreError(f"{self.path} ended inside row {row}")
            data, offset = data[count:], offset + count


def _read_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int, int]:
    """Return shape, order, dtype, where the data begin, and how long the file is."""
    with open_regular(path, StoreError) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return shape, fortran, dtype, file.tell(), os.fstat(file.fileno()).st_size


def create_array(path: Path, array: ArraySpec, rows: int) -> ArrayFile:
    """Create a sparse, zero-filled .npy file of ``rows`` rows; it must not exist yet."""
    header = {
        "descr": npy.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (rows, *array.shape),
    }
    with open(path, "xb") as file:
        npy.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * array.row_bytes)
        file.flush()
        os.fsync(file.fileno())
    return ArrayFile.read(path)


def contiguous_runs(rows: NDArray[np.int64]) -> Iterator[slice]:
    """Split ascending indices into slices of consecutive rows."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield slice(start, stop)

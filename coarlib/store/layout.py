"""What lies where in a store directory, and the .npy files it is made of.

``<key>.npy`` are C-order arrays ``[num_models, *shape]`` (NumPy format 1.0), created sparse;
``_completed.npy`` bool ``[num_models]`` is COAR's flag; ``_checksums.npy`` uint64
``[num_models]`` is ours: a row is committed when its checksum is not zero.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.spec import ArraySpec, StoreSpec

SPEC_FILE = "spec.json"
DESIGN_FILE = "design.json"
COMPLETED = "_completed"
CHECKSUMS = "_checksums"
DESIGN_MASKS = "_design_masks"
CLAIMS_DIR = "claims"
WORKERS_DIR = "workers"
FORMAT_VERSION = 1

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
        try:
            with open(path, "rb") as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(file)
                offset, size = file.tell(), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise StoreError(f"{path} is not a .npy array: {error}") from error
        if fortran or dtype.hasobject or not shape:
            raise StoreError(f"{path} must be a C-order array of numbers with a row axis")
        wanted = offset + dtype.itemsize * prod(shape)
        if size < wanted:
            raise StoreError(f"{path} is truncated: {size} bytes, its header asks for {wanted}")
        return cls(path, dtype, tuple(shape), offset)

    def map(self, rows: int | None = None) -> NDArray[Any]:
        """Map the array read-only, after dropping cached pages that other nodes may have changed.

        ``rows`` limits the view to the first rows (a store may be growing).
        """
        drop_cached_pages(self.path)
        count = self.shape[0] if rows is None else rows
        return np.memmap(
            self.path, self.dtype, mode="r", offset=self.offset, shape=(count, *self.shape[1:])
        )


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


def drop_cached_pages(path: Path) -> None:
    """Ask the system to forget cached pages of ``path``.

    A network-file-system client otherwise shows other nodes' rows as zeros, for minutes.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Make names created in or moved into ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

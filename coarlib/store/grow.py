"""Adding rows to a store in place, while workers write it.

The files are extended (sparse, so at no cost), then their headers say so, then ``spec.json``.
Each step can be repeated, so an interrupted growth is finished by running it again; data is never
moved, and descriptors that workers hold stay valid. NumPy leaves room in a header for its row
count to grow.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

from numpy.lib import format as npy

from coarlib.errors import SpecError, StoreError
from coarlib.files import fsync_directory
from coarlib.masks import check_design_fits
from coarlib.store.create import read_spec, write_spec
from coarlib.store.layout import CLAIMS_DIR, WRITE_FLAGS, ArrayFile, array_path, arrays_of
from coarlib.store.reader import Store, StoreLike
from coarlib.store.spec import StoreSpec, mask_width


def grow(store: StoreLike, num_models: int) -> Store:
    """Give ``store`` (open, or its path) ``num_models`` rows in all.

    They belong to the task that made the rows that are there, as ``identity.json`` says.

    Returns
    -------
    Store
        Opened anew.

    Raises
    ------
    StoreError
        If the store has more rows already, was not made by coarlib, is being grown by another
        process, or cannot be written.
    SpecError
        If the store's design has no more rows to give (an explicit list, leave-one-out).
    """
    store = _growable(store)
    with _only_one(store.path):
        spec = read_spec(store.path)
        if num_models < spec.num_models:
            raise StoreError(
                f"{store.path} has {spec.num_models} rows; growing it to {num_models} would lose "
                "some"
            )
        _enlarge(store, spec, num_models)
    return Store.open(store.path)


def at_least(store: StoreLike, num_models: int) -> Store:
    """Give ``store`` so many rows or more, as workers do that share it.

    One that is large enough stays as it is, and another process that is growing it is waited for.

    Raises
    ------
    StoreError, SpecError
        As of :func:`grow`.
    """
    store = Store.open(Store.open(store).path)
    if store.num_models >= num_models:
        return store
    store = _growable(store)
    with _only_one(store.path, wait=True):
        spec = read_spec(store.path)
        _enlarge(store, spec, max(num_models, spec.num_models))
    return Store.open(store.path)


def _growable(store: StoreLike) -> Store:
    store = Store.open(Store.open(store).path)  # as it is now, every setting checked
    if not store.has_checksums:
        raise StoreError(f"{store.path} was not made by coarlib; it cannot be grown in place")
    return store


def _enlarge(store: Store, spec: StoreSpec, num_models: int) -> None:
    """Extend the files, then the spec, which says that all is done."""
    if num_models == spec.num_models:
        return
    larger = replace(spec, num_models=num_models)
    _check_design(store, larger)
    try:
        for key in arrays_of(spec):
            _extend(array_path(store.path, key), num_models)
        write_spec(store.path, larger)
        fsync_directory(store.path)
    except OSError as error:
        raise StoreError(
            f"cannot grow {store.path}: {error.strerror}; nothing is lost, run it again"
        ) from error


@contextmanager
def _only_one(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock that the system itself drops when the process dies."""
    with ExitStack() as stack:
        try:
            (path / CLAIMS_DIR).mkdir(exist_ok=True)
            lock = stack.enter_context(open(path / CLAIMS_DIR / ".grow.lock", "a+"))
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise StoreError(f"another process is growing {path}; try again later") from error
        except OSError as error:
            raise StoreError(f"cannot lock {path} to grow it: {error.strerror}") from error
        yield


def _check_design(store: Store, larger: StoreSpec) -> None:
    design = store.design
    if design is None:
        return
    if design.from_file:
        raise SpecError("the masks of this store came from a file, which has no more rows to give")
    check_design_fits(design, larger.num_models, mask_width(larger, design.array))


def _extend(path: Path, rows: int) -> None:
    """Extend one array file to ``rows`` rows, then its header."""
    file = ArrayFile.read(path)
    shape = (rows, *file.shape[1:])
    header = io.BytesIO()
    npy.write_array_header_1_0(
        header,
        {"descr": npy.dtype_to_descr(file.dtype), "fortran_order": False, "shape": shape},
    )
    if len(header.getvalue()) != file.offset:
        raise StoreError(f"the header of {path} has no room for {rows} rows")
    wanted = file.offset + file.dtype.itemsize * prod(shape)
    descriptor = os.open(path, WRITE_FLAGS)
    try:
        if os.fstat(descriptor).st_size < wanted:
            # Writing the last byte can only extend; truncate could cut what another one added.
            os.pwrite(descriptor, b"\0", wanted - 1)
        os.pwrite(descriptor, header.getvalue(), 0)
    finally:
        os.close(descriptor)

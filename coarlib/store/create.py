"""Initialising a store: all or nothing, once, and never over something that is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import SpecError, StoreError
from coarlib.files import fsync_directory, sweep, whole_directory, whole_file
from coarlib.loading import load_json
from coarlib.store.design import (
    check_masks,
    check_same_files,
    checked_labels,
    write_design_files,
)
from coarlib.store.layout import (
    CLAIMS_DIR,
    FORMAT_VERSION,
    SEALED_SINCE,
    SPEC_FILE,
    WORKERS_DIR,
    array_path,
    arrays_of,
    create_array,
)
from coarlib.store.settle import DIGEST, damaged, digest_of, sealed_json
from coarlib.store.spec import StoreSpec, parse_spec_content
from coarlib.version import __version__


def initialize(
    path: str | Path,
    spec: StoreSpec,
    masks: NDArray[np.bool_] | None = None,
    labels: NDArray[Any] | None = None,
) -> bool:
    """Create the store ``path`` from ``spec``.

    The directory is built beside its place and moved there in one step, so that a store is either
    whole or absent, also when two processes initialise it at once.

    Parameters
    ----------
    path : str or Path
        The directory; its parents are created.
    spec : StoreSpec
    masks : bool [num_models, N], optional
        The masks of an ``explicit`` design that lists none itself.
    labels : int [N], optional
        The classes of a ``stratified`` or ``class_balanced`` design that lists none itself; they
        may also be left to the first worker's task.

    Returns
    -------
    bool
        True if the store was created, False if it was there already with the same spec.

    Raises
    ------
    StoreError
        If the directory holds something else, or a store with another spec.
    SpecError
        If ``masks`` or ``labels`` do not fit the design.
    """
    path = Path(path)
    check_masks(spec, masks)
    labels = checked_labels(spec, labels)
    if _already_there(path, spec):
        check_same_files(path, masks, labels)
        return False
    try:
        with whole_directory(path) as building:
            _build(building, spec)
            write_design_files(building, masks, labels)
            return move_into_place(building, path, spec)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error


def _already_there(path: Path, spec: StoreSpec) -> bool:
    """Return whether ``path`` is this very store; StoreError if it is anything else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not (path / SPEC_FILE).is_file():
        raise StoreError(
            f"{path} exists and is not a coarlib store (it has no {SPEC_FILE}); choose another path"
        )
    differences = read_spec(path).differences(spec)
    if differences:
        shown = "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else "")
        raise StoreError(
            f"{path} already holds a store with another spec ({shown}); "
            "nothing was changed: choose another path or use the store's own spec"
        )
    return True


def _build(building: Path, spec: StoreSpec) -> None:
    for key, array in arrays_of(spec).items():
        create_array(array_path(building, key), array, spec.num_models)
    (building / CLAIMS_DIR).mkdir()
    (building / WORKERS_DIR).mkdir()
    write_spec(building, spec)


def move_into_place(building: Path, path: Path, spec: StoreSpec) -> bool:
    """Give a new store its name; False if another process made the same one first."""
    try:
        os.rename(building, path)  # replaces an empty directory, refuses any other
    except OSError as error:
        if _already_there(path, spec):  # another process was first
            return False
        raise StoreError(
            f"cannot move the new store to {path}: {error.strerror} (if {path} is a mount point, "
            "choose a directory inside it)"
        ) from error
    fsync_directory(path.parent)
    return True


def sweep_store(path: Path) -> None:
    """Remove what killed processes left half-written in a store."""
    for directory in (path, path / WORKERS_DIR, path / CLAIMS_DIR):
        sweep(directory)


def write_spec(path: Path, spec: StoreSpec) -> None:
    """Write ``spec.json`` durably, replacing an older one in one step."""
    record = {
        **spec.as_json(),
        "coarlib": {
            "format_version": FORMAT_VERSION,
            "created_by": f"coarlib {__version__}",
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }
    file = path / SPEC_FILE
    if file.exists():  # the record of the creation outlives growth
        record["coarlib"] |= {
            key: value
            for key, value in load_json(file, StoreError)["coarlib"].items()
            if key.startswith("created")
        }
    with whole_file(file) as stream:
        stream.write(sealed_json(record))


def read_spec(path: Path) -> StoreSpec:
    """Read a store's own ``spec.json``; StoreError if it is damaged or from a newer format."""
    file = path / SPEC_FILE
    content = load_json(file, StoreError)
    made = content.pop("coarlib", None) if isinstance(content, dict) else None
    version = made.get("format_version") if isinstance(made, dict) else None
    if type(version) is not int or version < 1:
        raise StoreError(f"{file} is damaged: it has no format version (coarlib did not write it)")
    if version > FORMAT_VERSION:
        raise StoreError(f"{file} has format version {version}; update coarlib to read it")
    if version >= SEALED_SINCE and content.pop(DIGEST, None) != digest_of(
        {**content, "coarlib": made}
    ):
        raise damaged(file)
    try:
        return parse_spec_content(content)
    except SpecError as error:
        raise StoreError(f"{file} is damaged: {error}") from error

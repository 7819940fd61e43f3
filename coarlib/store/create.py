"""Initialising a store: all or nothing, once, and never over something that is there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coarlib
from coarlib.errors import SpecError, StoreError
from coarlib.files import fsync_directory, whole_file
from coarlib.masks import MaskDesign, check_design_fits, parse_design
from coarlib.spec import ArraySpec, StoreSpec, mask_width, parse_spec
from coarlib.store.layout import (
    CLAIMS_DIR,
    DESIGN_FILE,
    DESIGN_MASKS,
    FORMAT_VERSION,
    SPEC_FILE,
    WORKERS_DIR,
    ArrayFile,
    array_path,
    arrays_of,
    create_array,
)


def initialize(path: str | Path, spec: StoreSpec, masks: NDArray[np.bool_] | None = None) -> bool:
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

    Returns
    -------
    bool
        True if the store was created, False if it was there already with the same spec.

    Raises
    ------
    StoreError
        If the directory holds something else, or a store with another spec.
    SpecError
        If ``masks`` does not fit the design.
    """
    path = Path(path)
    _check_masks(spec, masks)
    if _already_there(path, spec):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error
    try:
        _build(building, spec, masks)
        return _move_into_place(building, path, spec)
    except OSError as error:
        raise StoreError(f"cannot create {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


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


def _build(building: Path, spec: StoreSpec, masks: NDArray[np.bool_] | None) -> None:
    building.chmod(0o777 & ~_umask())
    for key, array in arrays_of(spec).items():
        create_array(array_path(building, key), array, spec.num_models)
    if masks is not None:
        file = array_path(building, DESIGN_MASKS)
        create_array(file, ArraySpec(np.dtype(np.bool_), masks.shape[1:]), len(masks))
        _write_masks(file, masks)
    (building / CLAIMS_DIR).mkdir()
    (building / WORKERS_DIR).mkdir()
    write_spec(building, spec)


def _write_masks(file: Path, masks: NDArray[np.bool_]) -> None:
    with open(file, "r+b") as stream:
        stream.seek(ArrayFile.read(file).offset)
        stream.write(np.ascontiguousarray(masks).data)
        stream.flush()
        os.fsync(stream.fileno())


def _move_into_place(building: Path, path: Path, spec: StoreSpec) -> bool:
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_masks(spec: StoreSpec, masks: NDArray[np.bool_] | None) -> None:
    from_file = spec.design is not None and spec.design.from_file
    if masks is None and from_file:
        raise SpecError(
            "the explicit design lists neither kept nor ablated; give the masks as a file "
            "(--logging.masks FILE.npy)"
        )
    if masks is None:
        return
    if spec.design is None or not from_file:
        raise SpecError("masks are given but the spec's design does not ask for a mask file")
    wanted = (spec.num_models, mask_width(spec, spec.design.array))
    if masks.dtype != np.bool_ or masks.shape != wanted:
        raise SpecError(
            f"the given masks are {masks.dtype.name} {list(masks.shape)}, the spec asks for "
            f"bool {list(wanted)}"
        )


def write_spec(path: Path, spec: StoreSpec) -> None:
    """Write ``spec.json`` durably, replacing an older one in one step."""
    record = {
        **spec.as_json(),
        "coarlib": {
            "format_version": FORMAT_VERSION,
            "created_by": f"coarlib {coarlib.__version__}",
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }
    if made := _read_json(path / SPEC_FILE).get("coarlib"):
        record["coarlib"] = made  # the record of the creation outlives growth
    _write_json(path / SPEC_FILE, record)


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def read_spec(path: Path) -> StoreSpec:
    """Read a store's own ``spec.json``; StoreError if it is damaged or from a newer format."""
    file = path / SPEC_FILE
    try:
        content = _read_json(file)
        version = int(content.pop("coarlib", {})["format_version"])
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} is damaged: {error}") from error
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{file} is damaged: it has no format version (coarlib did not write it)"
        ) from error
    if version > FORMAT_VERSION:
        raise StoreError(f"{file} has format version {version}; update coarlib to read it")
    try:
        return parse_spec(json.dumps(content))
    except SpecError as error:
        raise StoreError(f"{file} is damaged: {error}") from error


def settle_design(path: Path, spec: StoreSpec, design: MaskDesign) -> MaskDesign:
    """Fix the design of a store whose spec names none: the first worker decides for all.

    Raises
    ------
    StoreError
        If the spec or an earlier worker settled on another design.
    SpecError
        If the design does not fit the mask array.
    """
    check_design_fits(design, spec.num_models, mask_width(spec, design.array))
    settled = read_design(path, spec)
    if settled is None:
        try:
            _write_json(path / DESIGN_FILE, design.as_json(), replace=False)
        except OSError as error:
            raise StoreError(f"cannot write {path / DESIGN_FILE}: {error.strerror}") from error
        settled = read_design(path, spec)
    if settled != design:
        raise StoreError(
            f"{path} draws its masks by {json.dumps(settled and settled.as_json())}, not by "
            f"{json.dumps(design.as_json())}: use the same mask arguments for all its rows"
        )
    return design


def read_design(path: Path, spec: StoreSpec) -> MaskDesign | None:
    """Return the design of the spec, else the one that the first worker settled, else None."""
    file = path / DESIGN_FILE
    if spec.design is not None:
        return spec.design
    if not file.exists():
        return None
    try:
        return parse_design(_read_json(file))
    except (OSError, ValueError, SpecError) as error:
        raise StoreError(f"{file} is damaged: {error}") from error


def _write_json(file: Path, content: dict[str, Any], replace: bool = True) -> None:
    """Write ``file`` durably in one step; with ``replace=False`` an existing file stays."""
    with whole_file(file, "w", replace) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")

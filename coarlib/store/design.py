"""What a store's masks are drawn by: the design, and the masks or labels handed over with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import SpecError, StoreError
from coarlib.masks import MaskDesign, check_design_fits, parse_design
from coarlib.store.layout import DESIGN_FILE, DESIGN_LABELS, DESIGN_MASKS, ArrayFile, array_path
from coarlib.store.settle import check_sealed_npy, read_sealed_json, sealed_json, sealed_npy, settle
from coarlib.store.spec import StoreSpec, mask_width


def check_masks(spec: StoreSpec, masks: NDArray[np.bool_] | None) -> None:
    """Raise SpecError unless ``masks`` are given where, and only where, the design asks."""
    from_file = spec.design is not None and spec.design.from_file
    if masks is None and from_file:
        raise SpecError(
            "the explicit design lists neither kept nor ablated; give the masks as a file (masks)"
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


def checked_labels(spec: StoreSpec, labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """Return labels as int64 [N]; SpecError unless the design asks for them and they fit."""
    if labels is None:
        return None
    design = spec.design
    if design is None or not design.by_class or design.labels is not None:
        raise SpecError("labels are given but the spec's design does not ask for a label file")
    labels = np.asarray(labels)
    check_design_fits(design, spec.num_models, mask_width(spec, design.array), labels)
    return labels.astype(np.int64)


def write_design_files(
    directory: Path, masks: NDArray[np.bool_] | None, labels: NDArray[np.int64] | None
) -> None:
    """Write what a design was handed, as .npy files beside the store's arrays."""
    for key, array in ((DESIGN_MASKS, masks), (DESIGN_LABELS, labels)):
        if array is not None:
            settle(array_path(directory, key), sealed_npy(array))


def check_same_files(
    path: Path, masks: NDArray[np.bool_] | None, labels: NDArray[np.int64] | None
) -> None:
    """Raise StoreError if the store ``path`` was made with other masks or labels than these."""
    for key, name, array in ((DESIGN_MASKS, "masks", masks), (DESIGN_LABELS, "labels", labels)):
        file = array_path(path, key)
        if array is None or not file.exists():
            continue
        found = ArrayFile.read(file).map()
        if not np.array_equal(found, array):
            raise StoreError(
                f"{path} already holds a store that was made with other {name}; nothing was "
                "changed: choose another path"
            )


def read_labels(path: Path) -> NDArray[np.int64] | None:
    """Read the labels that a store was given; None if it has none."""
    file = array_path(path, DESIGN_LABELS)
    if not file.exists():
        return None
    check_sealed_npy(file)
    return np.array(ArrayFile.read(file).map())


def settle_labels(path: Path, spec: StoreSpec, labels: NDArray[Any] | None) -> None:
    """Fix the labels of a design by classes that has none: the first worker decides for all.

    Labels that were given at initialisation hold, whatever the classes of the task are: strata
    may be finer, or something else.

    Parameters
    ----------
    labels : int [N], optional
        Those of the worker's task; None if it has none to offer.

    Raises
    ------
    StoreError
        If they cannot be written.
    SpecError
        If the labels do not fit, or neither the store nor the task has any.
    """
    design = spec.design
    if design is None or not design.by_class or design.labels is not None:
        return
    if read_labels(path) is not None:
        return
    mine = checked_labels(spec, labels)
    if mine is None:
        raise SpecError(
            f"the {design.kind} design of {path} needs the class of each feature, and the task "
            "has no labels: give them to initialize_store (labels, an .npy file)"
        )
    settle(array_path(path, DESIGN_LABELS), sealed_npy(mine))


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
        settle(path / DESIGN_FILE, sealed_json(design.as_json()))
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
    content = read_sealed_json(file)
    if content is None:
        return None
    try:
        return parse_design(content)
    except SpecError as error:
        raise StoreError(f"{file} is damaged: {error}") from error

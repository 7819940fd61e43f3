"""Mask designs: which components or training examples each row keeps.

The mask of row i is a pure function of (design, seed, i), so any row can be drawn alone, in any
order, on any machine. Randomness is counter-based: the raw 64-bit stream of Philox keyed by
(seed, row) (Salmon et al. 2011), whose stream NumPy guarantees never to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import SpecError
from coarlib.masks.strata import Strata, proportional_sizes

_FIELDS_OF_KIND = {
    "bernoulli": {"keep_prob"},
    "fixed_size": {"keep_prob", "size"},
    "stratified": {"keep_prob", "size", "labels"},
    "class_balanced": {"per_class", "size", "labels"},
    "leave_one_out": set(),
    "explicit": {"kept", "ablated"},
}
DESIGNS = tuple(_FIELDS_OF_KIND)
_BY_CLASS = ("stratified", "class_balanced")
# Kinds whose rows have a number of features, and the two keys that can say it.
_SIZED = {
    "fixed_size": ("size", "keep_prob"),
    "stratified": ("size", "keep_prob"),
    "class_balanced": ("size", "per_class"),
}
COMMON_FIELDS = {"array", "kind", "seed"}


@dataclass(frozen=True)
class MaskDesign:
    """How the masks of a store are drawn.

    Parameters
    ----------
    array : str
        Name of the mask array in the store's schema.
    kind : str
        ``bernoulli`` keeps each feature independently with ``keep_prob``; ``fixed_size`` keeps
        exactly ``size`` features (or ``round(keep_prob * N)``); ``stratified`` keeps as many, each
        class its share of them (:func:`class_sizes`); ``class_balanced`` keeps ``per_class`` of
        every class (or ``size`` in all); ``leave_one_out`` row i drops feature i, and row N, if
        there is one, keeps all; ``explicit`` rows are listed in ``kept`` or ``ablated`` (index
        lists, one a row), or come from a mask file given at initialisation.
    seed : int
        Non-negative; ignored by the two kinds that draw nothing.
    labels : tuple of int, optional
        The class of each feature, for the two kinds that ask. Left out, they come from a file
        given at initialisation, or from the first worker's task.
    """

    array: str = "masks"
    kind: str = "bernoulli"
    seed: int = 0
    keep_prob: float | None = None
    size: int | None = None
    kept: tuple[tuple[int, ...], ...] | None = None
    ablated: tuple[tuple[int, ...], ...] | None = None
    per_class: int | None = None
    labels: tuple[int, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the design as the spec's ``design`` object, without absent fields."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: _listed(value) for name, value in found.items() if value is not None}

    @property
    def by_class(self) -> bool:
        """Whether drawing needs the class of every feature."""
        return self.kind in _BY_CLASS

    @property
    def from_file(self) -> bool:
        """Whether the masks were handed over as a file when the store was initialised."""
        return self.kind == "explicit" and self.kept is None and self.ablated is None

    def ablated_share(self, num_features: int) -> float | None:
        """Return which share of the features a mask ablates on average; None if it does not say."""
        if self.kind == "bernoulli" and self.keep_prob is not None:
            return 1 - self.keep_prob
        if self.kind in ("fixed_size", "stratified"):
            return 1 - fixed_size(self, num_features) / num_features
        return None


def parse_design(content: object, where: str = "design") -> MaskDesign:
    """Check a spec's ``design`` object.

    Raises
    ------
    SpecError
        Naming the key that is unknown, missing, contradictory or out of range.
    """
    if not isinstance(content, Mapping):
        raise SpecError(f"{where} must be an object such as {{'kind': 'bernoulli', …}}")
    kind = content.get("kind")
    if kind not in DESIGNS:
        raise SpecError(f"{where}.kind must be one of {', '.join(DESIGNS)}, not {kind!r}")
    allowed = COMMON_FIELDS | _FIELDS_OF_KIND[kind]
    for key in content:
        if key not in allowed:
            choice = ", ".join(sorted(allowed))
            raise SpecError(f"{where}.{key} is not a key of a {kind} design; known: {choice}")
    least_size = 1 if kind in _BY_CLASS else 0
    design = MaskDesign(
        array=_text(content.get("array", "masks"), f"{where}.array"),
        kind=kind,
        seed=_whole(content.get("seed", 0), f"{where}.seed", least=0, most=2**63 - 1),
        keep_prob=_probability(content.get("keep_prob"), f"{where}.keep_prob"),
        size=_optional_whole(content.get("size"), f"{where}.size", least_size),
        kept=_index_lists(content.get("kept"), f"{where}.kept"),
        ablated=_index_lists(content.get("ablated"), f"{where}.ablated"),
        per_class=_optional_whole(content.get("per_class"), f"{where}.per_class", 1),
        labels=_labels(content.get("labels"), f"{where}.labels"),
    )
    if kind == "bernoulli" and design.keep_prob is None:
        raise SpecError(f"{where}.keep_prob is missing: a bernoulli design needs it")
    if kind in _SIZED:
        one, other = _SIZED[kind]
        if (getattr(design, one) is None) == (getattr(design, other) is None):
            raise SpecError(f"{where} needs exactly one of {one} and {other}")
    if design.kept is not None and design.ablated is not None:
        raise SpecError(f"{where} has both kept and ablated; give one of them")
    return design


def check_design_fits(
    design: MaskDesign,
    num_models: int,
    num_features: int,
    labels: NDArray[np.int64] | None = None,
) -> None:
    """Raise SpecError unless ``design`` can draw ``num_models`` masks of ``num_features``.

    ``labels`` int [N] are those of a design that asks for them and lists none.
    """
    labels = _labels_of(design, labels)
    if labels is not None:
        _check_labels(design, labels, num_features)
    if design.size is not None and design.size > num_features:
        raise SpecError(f"design.size is {design.size} but a mask has {num_features} features")
    if design.kind == "leave_one_out" and num_models > num_features + 1:
        raise SpecError(
            f"a leave_one_out design over {num_features} features has at most {num_features + 1} "
            f"rows (the last keeps all), not num_models = {num_models}"
        )
    lists = design.kept if design.kept is not None else design.ablated
    if lists is None:
        return
    if len(lists) != num_models:
        raise SpecError(f"the explicit design lists {len(lists)} rows, not num_models={num_models}")
    for row, indices in enumerate(lists):
        if indices and not 0 <= min(indices) <= max(indices) < num_features:
            raise SpecError(f"row {row} of the explicit design names a feature outside the mask")


def draw(
    design: MaskDesign,
    rows: NDArray[np.int64] | Sequence[int],
    num_features: int,
    labels: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Draw the masks of the given rows.

    Parameters
    ----------
    design : MaskDesign
        Not one whose masks come from a file (those are read from the store).
    rows : int [B]
        Row indices.
    num_features : int
        Width N of a mask.
    labels : int [N], optional
        Classes, for a stratified or class-balanced design that does not list them itself.

    Returns
    -------
    bool [B, N]
        True = kept (component not ablated, example in the training set).

    Raises
    ------
    SpecError
        If the design needs labels and has none, or they do not fit.
    """
    masks = np.empty((len(rows), num_features), dtype=np.bool_)
    strata = _strata(design, labels, num_features)
    for position, row in enumerate(rows):
        masks[position] = _draw_row(design, int(row), num_features, strata)
    return masks


def _strata(
    design: MaskDesign, labels: NDArray[np.int64] | None, num_features: int
) -> Strata | None:
    """Return what a design by classes draws from; None for all others."""
    if not design.by_class:
        return None
    labels = _labels_of(design, labels)
    if labels is None:
        raise SpecError(
            f"a {design.kind} design needs the class of each feature: give design.labels, a "
            "label file (labels), or a task with labels"
        )
    _check_labels(design, labels, num_features)
    return Strata.of(labels, class_sizes(design, np.unique(labels, return_counts=True)[1]))


def class_sizes(design: MaskDesign, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many features of each class every row of a design by classes keeps, int64 [C].

    Parameters
    ----------
    design : MaskDesign
        ``class_balanced``: as many of each. ``stratified``: each class its share of the size
        (:func:`coarlib.masks.strata.proportional_sizes`), the same in every row.
    counts : int64 [C]
        Features of each class.
    """
    if design.kind == "class_balanced":
        return np.full(len(counts), design.per_class or (design.size or 0) // len(counts))
    return proportional_sizes(counts, fixed_size(design, int(counts.sum())))


def _labels_of(design: MaskDesign, labels: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return the labels that a design is drawn by: its own, else those given."""
    if not design.by_class:
        return None
    return labels if design.labels is None else np.array(design.labels, dtype=np.int64)


def _check_labels(design: MaskDesign, labels: NDArray[np.int64], num_features: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (num_features,):
        raise SpecError(
            f"labels must be whole numbers, one for each of the {num_features} features of a "
            f"mask, not {labels.dtype.name} {list(labels.shape)}"
        )
    if design.kind != "class_balanced":
        return
    names, counts = np.unique(labels, return_counts=True)
    if design.size is not None and design.size % len(names):
        raise SpecError(
            f"design.size {design.size} is not a multiple of the {len(names)} classes; give a "
            "multiple, or per_class"
        )
    few = np.flatnonzero(counts < class_sizes(design, counts))
    if len(few):
        raise SpecError(
            f"class {names[few[0]]} has {counts[few[0]]} features, but the design keeps "
            f"{class_sizes(design, counts)[0]} of every class"
        )


def _draw_row(
    design: MaskDesign, row: int, num_features: int, strata: Strata | None
) -> NDArray[np.bool_]:
    if design.kind == "leave_one_out":
        mask = np.ones(num_features, dtype=np.bool_)
        mask[row : row + 1] = False  # row N drops nothing: the intact model
        return mask
    if design.kind == "explicit":
        lists, kept = (design.kept, True) if design.ablated is None else (design.ablated, False)
        if lists is None:
            raise SpecError("the masks of this design come from a file, they cannot be drawn")
        mask = np.full(num_features, not kept, dtype=np.bool_)
        mask[list(lists[row])] = kept
        return mask
    key = np.array([design.seed, row], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(num_features)
    if strata is not None:
        return strata.draw(raw)
    if design.kind == "fixed_size":
        return _smallest(raw, fixed_size(design, num_features))
    return bernoulli_threshold(raw, design.keep_prob or 0.0)


def bernoulli_threshold(raw: NDArray[np.uint64], keep_prob: float) -> NDArray[np.bool_]:
    """Return where 64-bit uniform integers fall below ``keep_prob`` of their range."""
    threshold = int(keep_prob * 2**64)
    if threshold >= 2**64:
        return np.ones(raw.shape, dtype=np.bool_)
    return np.asarray(raw < np.uint64(threshold))


def fixed_size(design: MaskDesign, num_features: int) -> int:
    """Return how many features a ``fixed_size`` or ``stratified`` design keeps."""
    if design.size is not None:
        return design.size
    return round((design.keep_prob or 0.0) * num_features)


def _smallest(raw: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
    """Mark the ``size`` smallest of the keys: a uniform random subset of that size."""
    mask = np.zeros(raw.shape, dtype=np.bool_)
    # A stable sort settles ties by position, so the subset is a function of the keys alone.
    mask[np.argsort(raw, kind="stable")[:size]] = True
    return mask


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where} must be text, not {value!r}")
    return value


def _whole(value: object, where: str, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{where} must be a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        raise SpecError(f"{where} must be at least {least}, not {value}")
    return value


def _optional_whole(value: object, where: str, least: int) -> int | None:
    return None if value is None else _whole(value, where, least)


def _labels(value: object, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise SpecError(f"{where} must be a list of whole numbers, one a feature")
    return tuple(_whole(label, where, least=-(2**63), most=2**63 - 1) for label in value)


def _listed(value: object) -> object:
    """Turn tuples, and tuples of tuples, into lists."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _probability(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise SpecError(f"{where} must be a probability above 0 and at most 1, not {value!r}")
    return float(value)


def _index_lists(value: object, where: str) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise SpecError(f"{where} must be a list of index lists, one a row")
    return tuple(
        tuple(_whole(index, f"{where}[{row}]", least=0) for index in indices)
        for row, indices in enumerate(value)
    )

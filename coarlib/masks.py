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

KINDS = ("bernoulli", "fixed_size", "leave_one_out", "explicit")
_FIELDS_OF_KIND = {
    "bernoulli": {"keep_prob"},
    "fixed_size": {"keep_prob", "size"},
    "leave_one_out": set(),
    "explicit": {"kept", "ablated"},
}
COMMON_FIELDS = {"array", "kind", "seed"}


@dataclass(frozen=True)
class MaskDesign:
    """How the masks of a store are drawn.

    Parameters
    ----------
    array : str
        Name of the mask array in the store's schema.
    kind : {"bernoulli", "fixed_size", "leave_one_out", "explicit"}
        ``bernoulli`` keeps each feature independently with ``keep_prob``; ``fixed_size`` keeps
        exactly ``size`` features (or ``round(keep_prob * N)``); ``leave_one_out`` row i drops
        feature i, and row N, if there is one, keeps all; ``explicit`` rows are listed in ``kept``
        or ``ablated`` (index lists, one a row), or come from a mask file given at initialisation.
    seed : int
        Non-negative; ignored by the two kinds that draw nothing.
    """

    array: str = "masks"
    kind: str = "bernoulli"
    seed: int = 0
    keep_prob: float | None = None
    size: int | None = None
    kept: tuple[tuple[int, ...], ...] | None = None
    ablated: tuple[tuple[int, ...], ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the design as the spec's ``design`` object, without absent fields."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: [list(row) for row in value] if isinstance(value, tuple) else value
            for name, value in found.items()
            if value is not None
        }

    @property
    def from_file(self) -> bool:
        """Whether the masks were handed over as a file when the store was initialised."""
        return self.kind == "explicit" and self.kept is None and self.ablated is None


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
    if kind not in KINDS:
        raise SpecError(f"{where}.kind must be one of {', '.join(KINDS)}, not {kind!r}")
    allowed = COMMON_FIELDS | _FIELDS_OF_KIND[kind]
    for key in content:
        if key not in allowed:
            choice = ", ".join(sorted(allowed))
            raise SpecError(f"{where}.{key} is not a key of a {kind} design; known: {choice}")
    design = MaskDesign(
        array=_text(content.get("array", "masks"), f"{where}.array"),
        kind=kind,
        seed=_whole(content.get("seed", 0), f"{where}.seed", least=0, most=2**63 - 1),
        keep_prob=_probability(content.get("keep_prob"), f"{where}.keep_prob"),
        size=None
        if content.get("size") is None
        else _whole(content["size"], f"{where}.size", least=0),
        kept=_index_lists(content.get("kept"), f"{where}.kept"),
        ablated=_index_lists(content.get("ablated"), f"{where}.ablated"),
    )
    if kind == "bernoulli" and design.keep_prob is None:
        raise SpecError(f"{where}.keep_prob is missing: a bernoulli design needs it")
    if kind == "fixed_size" and (design.keep_prob is None) == (design.size is None):
        raise SpecError(f"{where} needs exactly one of size and keep_prob")
    if design.kept is not None and design.ablated is not None:
        raise SpecError(f"{where} has both kept and ablated; give one of them")
    return design


def check_design_fits(design: MaskDesign, num_models: int, num_features: int) -> None:
    """Raise SpecError unless ``design`` can draw ``num_models`` masks of ``num_features``."""
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
    design: MaskDesign, rows: NDArray[np.int64] | Sequence[int], num_features: int
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

    Returns
    -------
    bool [B, N]
        True = kept (component not ablated, example in the training set).
    """
    masks = np.empty((len(rows), num_features), dtype=np.bool_)
    for position, row in enumerate(rows):
        masks[position] = _draw_row(design, int(row), num_features)
    return masks


def _draw_row(design: MaskDesign, row: int, num_features: int) -> NDArray[np.bool_]:
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
    """Return how many features a ``fixed_size`` design keeps."""
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

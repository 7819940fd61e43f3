"""The store specification: a JSON file, parsed and checked once.

A superset of COAR's: ``num_models`` and ``schema``; optional ``design`` (how masks are drawn),
``outputs`` (what the other arrays hold, in words) and ``notes``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coarlib.errors import SpecError
from coarlib.loading import load_text, parse_json
from coarlib.masks import MaskDesign, check_design_fits, parse_design

KEYS = ("num_models", "schema", "design", "outputs", "notes")
# Names that numpy itself resolves, limited to fixed-width numbers: no objects, no text.
DTYPES = (
    *("bool_", "bool", "float16", "float32", "float64", "half", "single", "double"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
KEY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")
MAX_KEY_LENGTH = 100
MAX_ARRAY_BYTES = 2**60
MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: ``dtype`` and the ``shape`` of a single row."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * prod(self.shape)

    def as_json(self) -> dict[str, Any]:
        """Return the schema entry, with dtypes spelled as upstream spells them."""
        name = "bool_" if self.dtype == np.bool_ else self.dtype.name
        return {"dtype": name, "shape": list(self.shape)}


@dataclass(frozen=True)
class StoreSpec:
    """A checked store specification.

    Parameters
    ----------
    num_models : int
        Rows of every array (M).
    schema : dict of name to ArraySpec
        The arrays, in the order of the file.
    design : MaskDesign or None
        How masks are drawn; None leaves that to the worker's arguments (as upstream) or the task.
    outputs : dict
        What the arrays hold, for people and reports.
    notes : str
        Free text.
    """

    num_models: int
    schema: dict[str, ArraySpec]
    design: MaskDesign | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be a store, whoever builds the spec (names become files)."""
        count = self.num_models
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise SpecError(f"num_models must be a positive whole number, not {count!r}")
        _check_names(self.schema)
        for key, array in self.schema.items():
            if array.dtype.name not in DTYPES or any(size < 1 for size in array.shape):
                raise SpecError(
                    f"{key} cannot be {array.dtype} {list(array.shape)} a row: a store holds "
                    "numbers and booleans, at least one of each"
                )
            if array.row_bytes * count > MAX_ARRAY_BYTES:
                raise SpecError(f"schema.{key} would take more than {MAX_ARRAY_BYTES} bytes")
        if self.design is not None:
            check_design_fits(self.design, count, mask_width(self, self.design.array))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays."""
        return sum(array.row_bytes for array in self.schema.values())

    @property
    def mask_key(self) -> str | None:
        """The array of masks: the design's, else ``masks``, else the only one that can be.

        None where there is none or a choice. A store whose workers settled its design knows better
        (:attr:`coarlib.store.Store.mask_key`).
        """
        if self.design is not None:
            return self.design.array
        found = [
            key
            for key, array in self.schema.items()
            if array.dtype == np.bool_ and len(array.shape) == 1
        ]
        if "masks" in found:
            return "masks"
        return found[0] if len(found) == 1 else None

    @property
    def output_key(self) -> str | None:
        """The only array of floats, else of whole numbers; None where there is none or a choice."""
        numbers = [key for key, array in self.schema.items() if array.dtype.kind in "iuf"]
        found = [key for key in numbers if self.schema[key].dtype.kind == "f"] or numbers
        return found[0] if len(found) == 1 else None

    def as_json(self) -> dict[str, Any]:
        """Return the spec as the JSON object that :func:`parse_spec` reads."""
        content: dict[str, Any] = {
            "num_models": self.num_models,
            "schema": {key: array.as_json() for key, array in self.schema.items()},
        }
        if self.design is not None:
            content["design"] = self.design.as_json()
        if self.outputs:
            content["outputs"] = self.outputs
        if self.notes:
            content["notes"] = self.notes
        return content

    def differences(self, other: StoreSpec) -> list[str]:
        """Say in words how ``other`` differs in anything that changes rows (notes do not).

        Each entry reads ``"key: <here> here, <there> there"``.
        """
        here, there = (_flatten(s.as_json()) for s in (self, other))
        return [
            f"{key}: {json.dumps(here.get(key))} here, {json.dumps(there.get(key))} there"
            for key in dict.fromkeys([*here, *there])
            if here.get(key) != there.get(key) and not key.startswith(("notes", "outputs"))
        ]


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class LayoutOfTask(Protocol):
    """What a store asks of a task's ``layout()``."""

    @property
    def num_features(self) -> int:
        """Width of a mask, N."""
        ...

    @property
    def outputs(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Array name -> name of its dtype, shape of one row."""
        ...


def spec_of_layout(
    layout: LayoutOfTask, rows: int, design: MaskDesign | Mapping[str, Any], notes: str = ""
) -> StoreSpec:
    """Write the spec of a store that holds ``rows`` rows of a task.

    Parameters
    ----------
    layout : LayoutOfTask
        Shapes, names and dtypes, as the task's ``layout()`` gives them.
    rows : int
    design : MaskDesign or mapping
        How the masks are drawn; a mapping holds the fields of one.
    notes : str

    Raises
    ------
    SpecError
        If this makes no store, such as a design that does not fit the features.
    """
    drawn = dict(design.as_json() if isinstance(design, MaskDesign) else design)
    masks = drawn.get("array", MaskDesign.array)
    schema = {masks: {"dtype": "bool_", "shape": [layout.num_features]}}
    for key, (dtype, shape) in layout.outputs.items():
        if key == masks:
            raise SpecError(f"the output {key!r} has the name of the mask array")
        schema[key] = {"dtype": dtype, "shape": list(shape)}
    content = {"num_models": rows, "schema": schema, "design": drawn, "notes": notes}
    return parse_spec(json.dumps(content))


def load_spec(path: str | Path) -> StoreSpec:
    """Read and check a spec file.

    Raises
    ------
    SpecError
        If the file is missing, is not JSON, or says something that cannot be.
    """
    text = load_text(path, SpecError)
    try:
        return parse_spec(text)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def parse_spec(text: str) -> StoreSpec:
    """Parse and check the JSON text of a spec; SpecError names the key that is wrong."""
    return parse_spec_content(parse_json(text, "the spec", SpecError, allow_nan=False))


def parse_spec_content(content: object) -> StoreSpec:
    """Check the JSON object of a spec; SpecError names the key that is wrong."""
    if not isinstance(content, dict):
        raise SpecError("a spec must be a JSON object with num_models and schema")
    _check_keys(content, KEYS, "the spec")
    for key in ("num_models", "schema"):
        if key not in content:
            raise SpecError(f"{key} is missing from the spec")
    return StoreSpec(
        num_models=content["num_models"],
        schema=_parse_schema(content["schema"]),
        design=None if content.get("design") is None else parse_design(content["design"]),
        outputs=_parse_outputs(content.get("outputs"), content["schema"]),
        notes=_parse_notes(content.get("notes")),
    )


def mask_width(spec: StoreSpec, key: str) -> int:
    """Return N of the mask array ``key``; SpecError unless it is a bool array of shape [N]."""
    if key not in spec.schema:
        known = ", ".join(spec.schema)
        raise SpecError(f"the design's mask array {key!r} is not in the schema ({known})")
    array = spec.schema[key]
    if array.dtype != np.bool_ or len(array.shape) != 1:
        raise SpecError(
            f"the mask array {key!r} must have dtype bool_ and one dimension, "
            f"not {array.dtype.name} {list(array.shape)}"
        )
    return array.shape[0]


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise SpecError(f"unknown key {key!r} in {where}; {hint}")


def _parse_schema(content: object) -> dict[str, ArraySpec]:
    if not isinstance(content, dict):
        raise SpecError("schema must be an object with at least one array")
    _check_names(content)
    return {key: _parse_array(key, value) for key, value in content.items()}


def _check_names(schema: Mapping[str, Any]) -> None:
    if not schema:
        raise SpecError("schema must be an object with at least one array")
    lowered: dict[str, str] = {}
    for key in schema:
        check_name(key)
        if key.lower() in lowered:
            raise SpecError(f"schema keys {lowered[key.lower()]!r} and {key!r} name one file")
        lowered[key.lower()] = key


def check_name(key: str) -> None:
    """Raise SpecError unless ``key`` can name an array, and so a file."""
    if key.startswith("_"):
        raise SpecError(f"schema key {key!r} is reserved: names may not begin with an underscore")
    if not KEY_PATTERN.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        raise SpecError(
            f"schema key {key!r} cannot name a file: use letters, digits and underscores, "
            f"at most {MAX_KEY_LENGTH} characters"
        )


def _parse_array(key: str, content: object) -> ArraySpec:
    where = f"schema.{key}"
    if not isinstance(content, dict):
        raise SpecError(f"{where} must be an object with dtype and shape")
    _check_keys(content, ("dtype", "shape"), where)
    for name in ("dtype", "shape"):
        if name not in content:
            raise SpecError(f"{where}.{name} is missing")
    name, shape = content["dtype"], content["shape"]
    if not isinstance(name, str) or name not in DTYPES:
        close = get_close_matches(str(name), DTYPES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(DTYPES)}"
        raise SpecError(f"{where}.dtype {name!r} is not a dtype a store can hold; {hint}")
    whole = isinstance(shape, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape
    )
    if not whole:
        raise SpecError(f"{where}.shape must be a list of positive whole numbers, not {shape!r}")
    if len(shape) > MAX_DIMENSIONS:
        raise SpecError(f"{where}.shape has {len(shape)} dimensions, at most {MAX_DIMENSIONS} fit")
    return ArraySpec(np.dtype(name.rstrip("_")), tuple(shape))


def _parse_outputs(content: object, schema: Mapping[str, Any]) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SpecError("outputs must be an object from array name to a description")
    _check_keys(content, tuple(schema), "outputs")
    return content


def _parse_notes(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(line, str) for line in content):
        return "\n".join(content)
    if not isinstance(content, str):
        raise SpecError("notes must be text or a list of lines")
    return content

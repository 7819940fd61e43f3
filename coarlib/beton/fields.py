"""The fields of a ``.beton`` file and their 1041-byte descriptors.

A descriptor is ``type id u1 | name[16] | arguments[1024]``, little-endian. Int and Float values
live in the metadata records; an NDArray's record holds the file offset of its bytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coarlib.errors import BetonError

__all__ = ["Field", "Float", "Int", "NDArray"]

DESCRIPTOR_BYTES = 1041
MAX_NAME_BYTES = 16
MAX_FIELDS = 2**16 - 1

_NAME = slice(1, 17)
_ARGUMENTS = slice(17, DESCRIPTOR_BYTES)
_MAX_DIMENSIONS = 32
_SHAPE = struct.Struct("<32Q")
_LENGTH = struct.Struct("<Q")
_DTYPE_START = _SHAPE.size + _LENGTH.size
_DTYPE_WORD = re.compile(r"[<>|][biufcmMSUV][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?")

_TORCH_TENSOR_ID = 6  # stored exactly like an NDArray
_UNREADABLE = {2: "an RGB image", 3: "a Bytes", 5: "a JSON", 255: "a custom"}


@dataclass(frozen=True)
class Int:
    """A 64-bit signed integer a row."""

    type_id: ClassVar[int] = 1
    dtype: ClassVar[np.dtype] = np.dtype("<i8")
    shape: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True)
class Float:
    """A 64-bit floating-point number a row."""

    type_id: ClassVar[int] = 0
    dtype: ClassVar[np.dtype] = np.dtype("<f8")
    shape: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True)
class NDArray:
    """An array of fixed dtype and shape a row.

    Parameters
    ----------
    dtype : numpy dtype or anything ``numpy.dtype`` takes
        Any dtype of fixed width without named fields; stored as given (the byte order too).
    shape : tuple of int
        One to 32 dimensions, each at least 1. A single number a row is ``Int`` or ``Float``.

    Raises
    ------
    BetonError
        If the format cannot hold such an array.
    """

    type_id: ClassVar[int] = 4
    dtype: np.dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
            shape = tuple(int(size) for size in self.shape)
        except (TypeError, ValueError) as error:
            raise BetonError(
                f"NDArray cannot have dtype {self.dtype!r}, shape {self.shape!r}: {error}"
            ) from error
        if dtype.hasobject or dtype.names or dtype.subdtype or dtype.itemsize == 0:
            raise BetonError(f"NDArray dtype must be a plain dtype of fixed width, not {dtype}")
        if not 1 <= len(shape) <= _MAX_DIMENSIONS or min(shape) < 1 or math.prod(shape) > 2**63:
            raise BetonError(
                f"NDArray shape must have 1 to {_MAX_DIMENSIONS} dimensions, each at least 1, "
                f"not {shape}"
            )
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one row's array."""
        return math.prod(self.shape) * self.dtype.itemsize


Field = Int | Float | NDArray


def check_names(names: Iterable[str]) -> None:
    """Refuse names that the format would truncate or could not hold (BetonError)."""
    for name in names:
        if not (name.isascii() and name.isprintable() and 1 <= len(name) <= MAX_NAME_BYTES):
            raise BetonError(
                f"field name {name!r} must be 1 to {MAX_NAME_BYTES} printable ASCII characters"
            )


def array_fields(fields: Mapping[str, Field]) -> dict[str, NDArray]:
    """Return the fields whose values lie in pages, in file order."""
    return {name: field for name, field in fields.items() if isinstance(field, NDArray)}


def encode_field(name: str, field: Field) -> bytes:
    """Return the 1041-byte descriptor of one field."""
    check_names([name])
    arguments = b""
    if isinstance(field, NDArray):
        word = json.dumps(field.dtype.descr).encode("ascii")
        shape = _SHAPE.pack(*field.shape, *[0] * (_MAX_DIMENSIONS - len(field.shape)))
        arguments = shape + _LENGTH.pack(len(word)) + word
    head = bytes([field.type_id]) + name.encode("ascii").ljust(MAX_NAME_BYTES, b"\0")
    return (head + arguments).ljust(DESCRIPTOR_BYTES, b"\0")


def decode_field(descriptor: bytes) -> tuple[str, Field]:
    """Return the name and field of a 1041-byte descriptor.

    Raises
    ------
    BetonError
        If the descriptor is malformed, or of a kind that is no NDArray, Int or Float.
    """
    raw = descriptor[_NAME].rstrip(b"\0")
    try:
        name = raw.decode("ascii")
        check_names([name])
    except (UnicodeDecodeError, BetonError) as error:
        raise BetonError(f"a field name is damaged ({raw!r})") from error
    kind, arguments = descriptor[0], descriptor[_ARGUMENTS]
    if kind in (NDArray.type_id, _TORCH_TENSOR_ID):
        return name, _decode_array(name, arguments)
    if kind in _UNREADABLE:
        raise BetonError(
            f"field '{name}' is {_UNREADABLE[kind]} field; only NDArray, Int and Float can be read"
        )
    if kind not in (Int.type_id, Float.type_id):
        raise BetonError(f"field '{name}' has unknown type {kind}")
    if any(arguments):
        raise BetonError(f"the descriptor of field '{name}' is damaged")
    return name, Int() if kind == Int.type_id else Float()


def _decode_array(name: str, arguments: bytes) -> NDArray:
    sizes = _SHAPE.unpack_from(arguments)
    dimensions = sizes.index(0) if 0 in sizes else len(sizes)
    (length,) = _LENGTH.unpack_from(arguments, _SHAPE.size)
    word = arguments[_DTYPE_START : _DTYPE_START + length]
    if any(sizes[dimensions:]) or any(arguments[_DTYPE_START + len(word) :]):
        raise BetonError(f"the shape or dtype of field '{name}' is damaged")
    try:
        ((_, text),) = json.loads(word.decode("ascii"))
        if not isinstance(text, str) or not _DTYPE_WORD.fullmatch(text):
            raise ValueError(text)
        return NDArray(np.dtype(text), sizes[:dimensions])
    except (ValueError, TypeError, RecursionError, BetonError) as error:
        raise BetonError(f"the shape or dtype of field '{name}' is damaged") from error

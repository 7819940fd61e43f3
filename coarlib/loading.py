"""Reading files that others may have written, cut short, damaged or crafted: one loader a format.

Each loader reads a regular file only (never a pipe that hangs), runs no code from it, takes no more
memory than its size warrants, and raises the caller's class of error with one sentence.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from coarlib.errors import CoarlibError

__all__ = [
    "load_json",
    "load_npy",
    "load_npz",
    "load_pt",
    "load_text",
    "load_yaml",
    "open_regular",
    "parse_json",
]

MAX_TEXT_BYTES = 2**28
MAX_YAML_BYTES = 2**24
MAX_DEPTH = 100
# Of a structure whose parts may be shared (YAML's aliases), each use counted.
MAX_NODES = 10**7
# An archive may expand to this, or to so many times its size.
FREE_EXPANSION, MOST_EXPANSION = 2**28, 100
NUMBERS, NUMBERS_AND_TEXT = "biuf", "biufUS"
# The end of an archive without a comment: signature, two disks, members here and in all, …
_ZIP_END = struct.Struct("<4sHHHHIIH")
# What NumPy, zipfile and zlib raise for bytes that are not what they should be.
DAMAGE = (
    *(OSError, ValueError, EOFError, TypeError, KeyError, IndexError, SyntaxError, TokenError),
    *(ArithmeticError, MemoryError, RecursionError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def load_json(path: str | Path, error: type[CoarlibError]) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : str or Path
    error : class
        What is raised if it cannot be read, or :func:`parse_json` refuses it.
    """
    return parse_json(_text(Path(path), error, MAX_TEXT_BYTES), str(path), error)


def load_text(path: str | Path, error: type[CoarlibError]) -> str:
    """Read a UTF-8 text file; parameters as :func:`load_json`."""
    return _text(Path(path), error, MAX_TEXT_BYTES)


def parse_json(
    text: str | bytes, where: str, error: type[CoarlibError], allow_nan: bool = True
) -> Any:
    """Read JSON; NaN and Infinity, which Python writes, are read too unless told otherwise.

    Raises
    ------
    error
        If it is not JSON, says a key twice, is nested more than 100 deep, or holds whole numbers
        of more than 64 bits or text that no encoding has.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{where}: the key {twice!r} stands twice in one object")
        return content

    def constant(word: str) -> float:
        if not allow_nan:
            raise error(f"{where}: {word} is not a number that JSON allows")
        return float(word)

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as problem:
        raise error(
            f"{where} is not valid JSON: {problem.msg} at line {problem.lineno}, column "
            f"{problem.colno}"
        ) from problem
    except (RecursionError, ValueError) as problem:
        raise error(
            f"{where} is not valid JSON: nested too deeply, a number too long, or not UTF-8"
        ) from problem
    _check_plain(content, where, error)
    return content


def load_yaml(path: str | Path, error: type[CoarlibError], loader: type | None = None) -> Any:
    """Read a YAML file of plain values; tags that name code are refused.

    Parameters
    ----------
    path, error
        As :func:`load_json`.
    loader : subclass of yaml.SafeLoader, optional
    """
    import yaml

    where, text = str(path), _text(Path(path), error, MAX_YAML_BYTES)
    try:
        content = yaml.load(text, Loader=loader or yaml.SafeLoader)
    except yaml.YAMLError as problem:
        reason = " ".join(str(problem).split())[:200]
        raise error(f"{where} is not plain YAML: {reason}") from problem
    except DAMAGE as problem:
        raise error(f"{where} is not plain YAML: nested too deeply, or a wrong value") from problem
    if not _expands_to(content, {}) <= MAX_NODES:
        raise error(f"{where} is nested too deeply, or repeats its parts too often")
    _check_plain(content, where, error)
    return content


def load_npy(
    path: str | Path, error: type[CoarlibError], mode: Literal["r", "c"] = "r"
) -> NDArray[Any]:
    """Map a ``.npy`` file of numbers.

    Parameters
    ----------
    path, error
        As :func:`load_json`.
    mode : {"r", "c"}
        Read-only, or writable in memory only.
    """
    path = Path(path)
    with _reading(path, error, "a whole NumPy array file of numbers") as file:
        shape, fortran, dtype = _header(file, NUMBERS)
        size = os.fstat(file.fileno()).st_size
        wanted = file.tell() + dtype.itemsize * prod(shape)
        if size != wanted:
            raise ValueError(f"it has {size} bytes, its header asks for {wanted}")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if not prod(shape):
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype, mode, file.tell(), shape, order)


def load_npz(path: str | Path, error: type[CoarlibError]) -> dict[str, NDArray[Any]]:
    """Read all arrays of an ``.npz`` (numbers and text), each compared with its checksum."""
    path = Path(path)
    found = {}
    with (
        _reading(path, error, "a whole .npz of plain arrays") as file,
        zipfile.ZipFile(file) as archive,
    ):
        _check_archive(archive, path)
        for member in archive.infolist():
            found[member.filename.removesuffix(".npy")] = _array(archive.read(member))
    return found


def load_pt(
    path: str | Path,
    error: type[CoarlibError],
    mmap: bool = False,
    read: Callable[[Path], Any] | None = None,
) -> Any:
    """Load tensors that ``torch.save`` wrote, on the CPU, compared with their checksums.

    Parameters
    ----------
    path, error
        As :func:`load_json`.
    mmap : bool
        Map the tensors instead of reading them.
    read : function of the path, optional
        Instead of ``torch.load(weights_only=True)``; it must run no code from the file either.
    """
    path = Path(path)
    with _reading(path, error, "plain tensors that torch saved") as file:
        size = os.fstat(file.fileno()).st_size
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, path)
                if (wrong := archive.testzip()) is not None:
                    raise ValueError(f"{wrong} in it does not match its checksum")
    try:
        content = _load_tensors(path, mmap) if read is None else read(path)
    except CoarlibError:
        raise
    except Exception as problem:  # torch raises many kinds for a damaged or unsafe file
        raise error(f"{path} cannot be read as plain tensors: {_reason(problem)}") from problem
    _check_tensors(content, size, path, error)
    return content


def _load_tensors(path: Path, mmap: bool) -> Any:
    """Load tensors, and NumPy arrays of numbers that were pickled among them."""
    import torch

    with torch.serialization.safe_globals(_plain_arrays()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _plain_arrays() -> list[Any]:
    """What a pickled NumPy array of numbers is made with, and nothing else of NumPy's."""

    def empty(*_: Any) -> NDArray[Any]:
        return np.empty(0, "u1")  # the array's own state gives it shape, dtype and values

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"bytes in it are encoded as {encoding}")
        return text.encode(encoding)

    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [
        *((empty, f"{module}._reconstruct") for module in modules),
        *(np.ndarray, np.dtype, *dtypes, (encode, "_codecs.encode")),
        *(
            (lambda: b"", name) for name in ("bytes", "builtins.bytes")
        ),  # of an array without values
    ]


def _check_tensors(content: Any, size: int, path: Path, error: type[CoarlibError]) -> None:
    """Refuse tensors that claim far more values than the file has bytes (by strides of zero)."""
    waiting, most = [content], max(FREE_EXPANSION, MOST_EXPANSION * size)
    for _ in range(MAX_NODES):
        if not waiting:
            return
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif hasattr(one, "numel") and one.numel() > most:
            raise error(f"{path} holds a tensor of {one.numel()} values in {size} bytes")
    raise error(f"{path} holds more than {MAX_NODES} values; it is no file of tensors")


@contextmanager
def _reading(path: Path, error: type[CoarlibError], what: str) -> Iterator[IO[bytes]]:
    """Open a regular file; whatever its bytes provoke becomes one sentence."""
    try:
        with open_regular(path, error) as file:
            yield file
    except DAMAGE as problem:
        raise error(f"{path} is not {what}: {_reason(problem)}") from problem


def open_regular(path: Path, error: type[CoarlibError]) -> IO[bytes]:
    """Open a file for reading, never a pipe that would wait; ``error`` if it is none."""
    try:
        # A pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as problem:
        raise error(f"there is no file {path}") from problem
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a file")
    return os.fdopen(descriptor, "rb")


def _text(path: Path, error: type[CoarlibError], most: int) -> str:
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise error(f"{path} has {size} bytes; at most {most} are read as text")
        try:
            return file.read().decode("utf-8")
        except OSError as problem:
            raise error(f"cannot read {path}: {problem.strerror}") from problem
        except UnicodeDecodeError as problem:
            raise error(f"{path} is not UTF-8 text (byte {problem.start})") from problem


def _reason(problem: BaseException) -> str:
    whole = re.sub(r"\x1b\[[0-9;]*m", "", str(getattr(problem, "strerror", None) or problem))
    if (found := re.search(r"GLOBAL ([\w.]+)", whole)) is not None:
        return f"it holds {found[1]}, which may run code when it is loaded"
    if whole.startswith("Weights only load failed"):
        return "it holds something else than tensors and arrays of numbers"
    text = whole.partition("\n")[0]
    return re.sub(r"[^ -~]", "?", text)[:200] or type(problem).__name__


def _header(file: IO[bytes], kinds: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in kinds or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"its values are {dtype} {shape}")
    return shape, fortran, dtype


def _array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    shape, fortran, dtype = _header(file, NUMBERS_AND_TEXT)
    if len(data) != file.tell() + dtype.itemsize * prod(shape):
        raise ValueError("an array in it is cut short, or longer than its header says")
    values = np.frombuffer(data, dtype, prod(shape), file.tell())
    return values.reshape(shape, order="F" if fortran else "C").copy()


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    members = archive.infolist()
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise ValueError("a member of it stands there twice")
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END.size))
        tail = file.read()
    if tail.startswith(b"PK\x05\x06") and _ZIP_END.unpack(tail)[3:5] != 2 * (len(members),):
        raise ValueError("its list of members is damaged")
    expanded = sum(member.file_size for member in members)
    if expanded > max(FREE_EXPANSION, MOST_EXPANSION * path.stat().st_size):
        raise ValueError(f"it would expand to {expanded} bytes, which no such data does")


def _check_plain(content: Any, where: str, error: type[CoarlibError]) -> None:
    """Refuse what would fail later, far from the file: depth, size, numbers, text."""
    waiting, nodes = [(content, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, dict | list):
            parts = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            nodes += len(parts)
            if depth > MAX_DEPTH or nodes > MAX_NODES:
                raise error(f"{where} is nested too deeply, or repeats its parts too often")
            waiting += [(part, depth + 1) for part in parts if not _plain_number(part)]
        elif isinstance(one, str):
            if not _encodable(one):
                raise error(f"{where} holds text that is not Unicode")
        elif isinstance(one, int) and not _plain_number(one):
            raise error(f"{where} holds a whole number of more than 64 bits")


def _expands_to(one: Any, known: dict[int, float], depth: int = 0) -> float:
    """How many values a structure is whose parts are shared; infinity if it contains itself."""
    if not isinstance(one, dict | list):
        return 1.0
    if id(one) not in known:
        known[id(one)] = math.inf  # until it is known; of its own parts, for ever
        parts = [*one.keys(), *one.values()] if isinstance(one, dict) else one
        deeper = depth <= MAX_DEPTH
        known[id(one)] = (
            1.0 + sum(_expands_to(part, known, depth + 1) for part in parts) if deeper else math.inf
        )
    return known[id(one)]


def _plain_number(value: Any) -> bool:
    kind = type(value)
    return kind in (float, bool) or (kind is int and -(2**63) <= value < 2**64)


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False

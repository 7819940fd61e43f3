"""Settings files beside the arrays: settled by the first writer, sealed by a digest.

Of several workers that would choose a setting, the first one's file stays. JSON settings are
objects with a ``digest`` of all the rest; ``.npy`` settings end in one, behind the data, where
NumPy does not look. A file that does not match its digest is damaged: an error wherever it is read.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.lib import format as npy
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.files import whole_file
from coarlib.loading import load_json, open_regular
from coarlib.store.layout import SEALED_SINCE, SPEC_FILE

DIGEST = "digest"
SEAL = re.compile(rb"coarlib xxh3 ([0-9a-f]{16})")
SEAL_BYTES = len(b"coarlib xxh3 ") + 16
MOST_AT_ONCE = 2**24


def settle(path: Path, content: bytes) -> None:
    """Give ``path`` this content unless it exists; StoreError if it cannot be written."""
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with whole_file(path, replace=False) as file:
                file.write(content)
    except OSError as error:
        raise StoreError(f"cannot settle {path}: {error.strerror or error}") from error


def digest_of(content: Any) -> str:
    """Digest JSON content, whatever the order and spacing of its file; 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{xxhash.xxh3_64_intdigest(text.encode()):016x}"


def sealed_json(content: dict[str, Any]) -> bytes:
    """Return the file of a JSON setting, its digest included."""
    content = json.loads(json.dumps(content))
    return (json.dumps({**content, DIGEST: digest_of(content)}, indent=1) + "\n").encode()


def read_sealed_json(path: Path) -> Any:
    """Read a JSON setting and compare it with its digest; None if there is no such file.

    Settings of a store made before digests were kept are taken as they are.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    if not path.exists():
        return None
    content = load_json(path, StoreError)
    if isinstance(content, dict) and DIGEST in content:
        found = content.pop(DIGEST)
        if found != digest_of(content):
            raise damaged(path)
    elif _needs_digests(path.parent):
        raise damaged(path)
    return content


def _needs_digests(directory: Path) -> bool:
    """Whether a directory is a store, or its like, of a version that seals all its settings."""
    spec = directory / SPEC_FILE
    made = load_json(spec, StoreError) if spec.is_file() else {}
    made = made.get("coarlib") if isinstance(made, dict) else None
    version = made.get("format_version") if isinstance(made, dict) else None
    return isinstance(version, int) and version >= SEALED_SINCE


def damaged(path: Path) -> StoreError:
    """Return the error of a settings file that does not match its digest."""
    return StoreError(
        f"{path} is damaged or was changed by hand: it does not match its digest; put back what "
        "the store was made with"
    )


def sealed_npy(array: NDArray[Any]) -> bytes:
    """Return the ``.npy`` file of an array, its digest behind the data."""
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    data = file.getvalue()
    return data + f"coarlib xxh3 {xxhash.xxh3_64_intdigest(data):016x}".encode()


def check_sealed_npy(path: Path) -> None:
    """Compare a ``.npy`` setting with its digest, if it has one; StoreError if it is damaged."""
    digest, tail = xxhash.xxh3_64(), b""
    try:
        with open_regular(path, StoreError) as file:
            while part := file.read(MOST_AT_ONCE):
                digest.update((tail + part)[:-SEAL_BYTES])
                tail = (tail + part)[-SEAL_BYTES:]
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    seal = SEAL.fullmatch(tail)
    if seal is not None and int(seal[1], 16) != digest.intdigest():
        raise damaged(path)

"""First writer wins: a file whose content several workers would choose is chosen by the first."""

from __future__ import annotations

from pathlib import Path

from coarlib.errors import StoreError
from coarlib.files import whole_file


def settle(path: Path, content: bytes) -> bytes:
    """Give ``path`` this content unless it exists; return what it holds from then on.

    Raises
    ------
    StoreError
        If it cannot be written or read.
    """
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with whole_file(path, replace=False) as file:
                file.write(content)
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot settle {path}: {error.strerror or error}") from error

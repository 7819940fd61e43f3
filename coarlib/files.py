"""Files that appear under their name whole and on disk, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: str | Path, mode: str = "wb", replace: bool = True) -> Iterator[IO[Any]]:
    """Open a draft beside ``path`` that takes its place when the block ends well.

    Parameters
    ----------
    path : str or Path
        In a directory that exists.
    mode : {"wb", "w"}
        Text is UTF-8.
    replace : bool
        If False and ``path`` exists by then, the existing file stays and the draft is dropped, so
        that of several processes the first one wins.

    Yields
    ------
    file
        The draft. If the block raises, nothing of it remains.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    # Unlike tempfile's, this descriptor follows the user's umask: stores are shared by groups.
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            _link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    fsync_directory(path.parent)


def _link(draft: Path, path: Path) -> None:
    """Give ``draft`` its name unless the name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(draft, path)


def fsync_directory(path: Path) -> None:
    """Make names created in or moved into ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

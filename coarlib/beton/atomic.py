"""A new file appears under its name whole and on disk, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coarlib.beton.layout import HEADER, VERSION, is_page_size
from coarlib.errors import BetonError
from coarlib.files import for_file, fsync_directory


@contextmanager
def whole_or_nothing(path: Path, size: int) -> Iterator[int]:
    """Yield a descriptor of a new file of ``size`` zero bytes that becomes ``path`` on success."""
    _refuse_foreign(path)
    partial = path.with_name(path.name + ".partial")
    try:
        leftover = for_file(partial).exists()
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BetonError(f"cannot write {partial}: {error.strerror}") from error
    try:
        _claim(descriptor, partial)
        if leftover:
            print(f"{partial.name}: an interrupted write, starting over", file=sys.stderr)
        try:
            os.ftruncate(descriptor, 0)
            free = shutil.disk_usage(path.parent).free
            if size > free:
                raise BetonError(f"{path} needs {size} bytes, but its disk has {free} left")
            os.ftruncate(descriptor, size)
            yield descriptor
            os.fsync(descriptor)
            os.replace(partial, path)
            fsync_directory(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise BetonError(f"cannot write {path}: {error.strerror}") from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _refuse_foreign(path: Path) -> None:
    """Refuse to replace anything that is not a ``.beton`` (BetonError)."""
    if not path.exists():
        return
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    if len(head) == HEADER.size:
        version, _, page_size, _, _ = HEADER.unpack(head)
        if version == VERSION and is_page_size(page_size):
            return
    raise BetonError(f"{path} exists and is not a .beton; choose another name or remove it")


def _claim(descriptor: int, partial: Path) -> None:
    """Lock the partial file, or say that another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking it, its writer may have renamed it to the finished file.
        if os.fstat(descriptor).st_ino == partial.stat().st_ino:
            return
    except OSError:
        pass
    raise BetonError(f"another process is writing {partial}; wait for it or choose another name")

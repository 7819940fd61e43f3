"""Files that appear under their name whole and on disk, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import IO, Any

# Name, system, process, chance.
DRAFT = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
SECONDS_UNTIL_ABANDONED = 86400.0


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
        If it cannot be written; ``path`` is its file name.
    """
    path = Path(path)
    draft = draft_of(path)
    try:
        # Unlike tempfile's, this descriptor follows the user's umask: stores are shared by groups.
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            _link(draft, path)
    except OSError as error:
        if error.filename in {None, str(draft)}:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)
    fsync_directory(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Make a draft directory beside ``path``, for the caller to move there once it is complete.

    It takes group and permissions as any new directory there does, set-group-ID included; what the
    caller has not moved away is removed, and what killed processes left of such drafts, too.
    """
    sweep(for_file(path).parent, path.name)
    draft = draft_of(path)
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def for_file(path: str | Path) -> Path:
    """Make the directory that a file is to be written to; return the file's path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def draft_of(path: Path) -> Path:
    """Return a hidden name beside ``path`` that says which process of which system made it."""
    return path.with_name(f".{path.name}.{_system()}-{os.getpid()}-{os.urandom(4).hex()}")


def sweep(directory: Path, name: str = "*") -> None:
    """Remove drafts in ``directory`` whose process is gone: it ran here, or a day ago elsewhere.

    ``name`` limits that to drafts of one file or directory.
    """
    now = time.time()
    for draft in directory.glob(f".{name if name == '*' else escape(name)}.*-*-*"):
        match = DRAFT.fullmatch(draft.name)
        if match is None:
            continue
        with suppress(OSError):
            if not _is_gone(match[1], int(match[2]), now - draft.lstat().st_mtime):
                continue
            if draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink()


def _is_gone(system: str, pid: int, age: float) -> bool:
    if system != _system():
        return age > SECONDS_UNTIL_ABANDONED
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@cache
def _system() -> str:
    """Return a short digest of :func:`this_system`, or one that no other process has."""
    text = this_system() or f"{os.uname().nodename} {os.getpid()} {time.time()}"
    return f"{zlib.crc32(text.encode()):08x}"


@cache
def this_system() -> str | None:
    """Return what two processes share if they can see each other: boot and process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


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

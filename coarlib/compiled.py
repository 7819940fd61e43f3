"""``numba.njit`` whose compiled code is kept where this user may write, on any installation.

Numba keeps compiled code beside the source, or below the home directory, and refuses to import
where neither can be written, as in images and on clusters. Here the first of these is taken that
can: what ``NUMBA_CACHE_DIR`` says, the package itself, the user's cache directory, a directory of
the user's own for temporary files (which the jobs of a node share). If there is none, code is
compiled in every process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

__all__ = ["cache_directory", "njit"]

_VARIABLE = "NUMBA_CACHE_DIR"


def cache_directory() -> Path | None:
    """Return where compiled code is kept; None if nowhere."""
    if said := os.environ.get(_VARIABLE):
        return Path(said)
    package = Path(__file__).parent
    if os.access(package, os.W_OK):
        return package
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for place in (Path(home, "coarlib"), Path(tempfile.gettempdir(), f"coarlib-{user}")):
        if _is_ours(place):
            return place
    return None


def _is_ours(place: Path) -> bool:
    """Make a directory that only this user can write: what lies in it is loaded as code."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.stat(follow_symlinks=False)
    except OSError:
        return False
    ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return ours and place.is_dir() and os.access(place, os.W_OK)


_place = cache_directory()
if _place is not None and _place != Path(__file__).parent and _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = str(_place)  # for processes that this one starts
    numba.config.CACHE_DIR = str(_place)  # type: ignore[attr-defined]


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate as ``numba.njit`` does, keeping compiled code if there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        if _place is None:
            return numba.njit(**options)(function)
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # it cannot be kept there after all
            return numba.njit(**options)(function)

    return decorate

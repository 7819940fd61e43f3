"""``numba.njit`` whose compiled code is kept where this user may write, on any installation.

Numba keeps compiled code beside the source, or below the home directory, and refuses to import
where neither can be written, as in images and on clusters. Here the first of these is taken that
can: what ``NUMBA_CACHE_DIR`` says, the package itself, the user's cache directory, a directory of
the user's own for temporary files (which the jobs of a node share). If there is none, code is
compiled in every process.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Compiled", "cache_directory", "compiling_everything", "njit", "worth_compiling"]

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

_everything = False


@contextmanager
def compiling_everything() -> Iterator[None]:
    """Let compiled code do all work while the context is open, however small."""
    global _everything  # noqa: PLW0603 - threads see it, too
    before, _everything = _everything, True
    try:
        yield
    finally:
        _everything = before


def worth_compiling(work: float, limit: float) -> bool:
    """Whether so much work repays compiling: NumPy and torch do up to ``limit`` in no time."""
    return _everything or work > limit


class Compiled:
    """A function that is compiled, or loaded, when it is first called: so numba is seldom imported.

    Compiled functions may call each other.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        return self._dispatcher(*arguments)

    @functools.cached_property
    def _dispatcher(self) -> Any:
        import numba

        if _place is not None:
            if _VARIABLE in os.environ:
                numba.config.CACHE_DIR = os.environ[_VARIABLE]  # type: ignore[attr-defined]
            try:
                return numba.njit(cache=True, **self._options)(self._function)
            except RuntimeError:  # it cannot be kept there after all
                pass
        return numba.njit(**self._options)(self._function)

    @property
    def _numba_type_(self) -> Any:
        """By which numba knows it where another compiled function calls it."""
        return self._dispatcher._numba_type_

    @property
    def is_ready(self) -> bool:
        """Whether it has been compiled in this process, or is kept from another."""
        if "_dispatcher" not in vars(self) and not self._may_be_kept():
            return False
        if self._dispatcher.signatures:
            return True
        try:  # numba has no public way to ask
            return bool(self._dispatcher._cache._cache_file._load_index())
        except (AttributeError, OSError, ValueError):
            return False

    def _may_be_kept(self) -> bool:
        """Look for a file of compiled code, be it an outdated one; numba is not needed for that."""
        source = Path(self._function.__code__.co_filename)
        name = f"{source.stem}.{self._function.__qualname__}-*.nbi"
        if _VARIABLE in os.environ:
            return any(Path(os.environ[_VARIABLE]).rglob(name))
        return any((source.parent / "__pycache__").glob(name))


def njit(**options: Any) -> Callable[[Callable[..., Any]], Compiled]:
    """Decorate as ``numba.njit`` does, keeping compiled code if there is a place for it."""
    return lambda function: Compiled(function, options)

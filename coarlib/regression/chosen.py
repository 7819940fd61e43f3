"""Which of some numbered things are meant: features or targets, by index, mask or slice."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError, nearest

__all__ = ["chosen", "named"]


def chosen(which: Any, count: int, what: str) -> NDArray[np.int64]:
    """Return the indices that are meant, int64 [k].

    Parameters
    ----------
    which : int, sequence of int, bool [count], or slice
        Counted from 0; none at all is allowed.
    count : int
        How many there are.
    what : str
        What they are called, in the singular.

    Raises
    ------
    RegressionError
        If it is none of these, or one does not exist.
    """
    if isinstance(which, slice):
        return np.arange(count)[which]
    try:
        found = np.asarray(which)
    except ValueError:
        found = np.empty((), object)
    if found.ndim == 1 and not found.size:
        return np.empty(0, np.int64)
    if found.dtype == np.bool_ and found.shape == (count,):
        return np.flatnonzero(found)
    if found.dtype.kind not in "iu" or found.ndim > 1:
        raise RegressionError(
            f"{what}s are chosen by whole numbers, a slice, or {count} booleans, not {which!r:.60}"
        )
    found = found.reshape(-1)
    outside = found[(found < 0) | (found >= count)]
    if len(outside):
        raise RegressionError(
            f"{what} {outside[0]} does not exist: there are {count}, counted from 0"
        )
    return found.astype(np.int64)


def named(pattern: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the indices of the names that fit a pattern, or are it, int64 [k].

    Raises
    ------
    RegressionError
        If none does; the message names the nearest one.
    """
    found = [at for at, name in enumerate(names) if name == pattern]
    found = found or [at for at, name in enumerate(names) if fnmatchcase(name, pattern)]
    if not found:
        raise RegressionError(f"no feature is named {pattern}{nearest(pattern, names)}")
    return np.array(found, np.int64)

"""Targets with outputs that are NaN or infinite in some rows: what becomes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError
from coarlib.scoring.rows import named

__all__ = [
    "NONFINITE",
    "InfiniteOutputsWarning",
    "NonFinite",
    "check_nonfinite",
    "targets_by_rows",
    "warn_of_infinite",
    "without_infinite",
]

NonFinite = Literal["keep", "targets", "alone"]
NONFINITE: tuple[NonFinite, ...] = get_args(NonFinite)
_LEAST_ROWS = 2


class InfiniteOutputsWarning(UserWarning):
    """Some targets have infinite outputs; the message says which and what became of them."""


def check_nonfinite(how: str) -> None:
    """Refuse a word that is none of :data:`NONFINITE`; ScoringError."""
    if how not in NONFINITE:
        raise ScoringError(f"nonfinite must be {', '.join(NONFINITE)}, not {how!r}")


def without_infinite(outputs: NDArray[Any]) -> NDArray[Any]:
    """Return outputs with NaN in place of what is infinite; not copied if nothing is."""
    if outputs.dtype.kind != "f" or not np.isinf(outputs).any():
        return outputs
    return np.where(np.isinf(outputs), np.nan, outputs)


def targets_by_rows(
    chosen: NDArray[np.bool_], outputs: NDArray[Any]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Group targets by the rows in which their outputs are finite.

    Parameters
    ----------
    chosen : bool [T]
        Targets to look at.
    outputs : real [M, T]

    Yields
    ------
    targets : int64 [t]
    rows : bool [M]
        At least two are set; targets with fewer are left out.
    """
    targets = np.flatnonzero(chosen)
    finite = np.isfinite(outputs[:, targets])
    patterns, group = np.unique(np.packbits(finite, axis=0), axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        members = np.flatnonzero(group.reshape(-1) == number)
        rows = finite[:, members[0]]
        if rows.sum() >= _LEAST_ROWS:
            yield targets[members], rows


def warn_of_infinite(infinite: NDArray[np.bool_], how: NonFinite, stacklevel: int = 2) -> None:
    """Name targets that have a correlation though some outputs are infinite, bool [T]."""
    if infinite.any():
        became = {
            "keep": "which rank as very large ones; nonfinite='targets' or 'alone' leaves them out",
            "alone": "whose rows are left out for them alone",
        }
        warnings.warn(
            f"{int(infinite.sum())} of {infinite.size} targets have infinite outputs (target "
            f"{named(np.flatnonzero(infinite))}), {became.get(how, 'and are left out')}",
            InfiniteOutputsWarning,
            stacklevel=stacklevel + 1,
        )

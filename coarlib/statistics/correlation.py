"""Correlations of many targets at once, with two-sided p-values.

Every function takes ``a [M, T]`` and ``b [M, T]`` and correlates column t of ``a`` with column t
of ``b``. A column that is constant or holds a NaN has no correlation: its entry is NaN, and an
:class:`UndefinedCorrelationWarning` says how many there are and names the first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.compiled import njit
from coarlib.errors import ScoringError
from coarlib.statistics.arrays import BLOCK_BYTES, as_array, blocks, in_threads
from coarlib.statistics.kendall import kendall_of_ranks
from coarlib.statistics.ranks import doubled_ranks

__all__ = [
    "CORRELATIONS",
    "Correlation",
    "Kind",
    "UndefinedCorrelationWarning",
    "correlate",
    "kendall",
    "pearson",
    "pearson_of",
    "rank_correlation",
    "spearman",
    "t_test",
]

Kind = Literal["spearman", "pearson", "kendall"]
CORRELATIONS: tuple[Kind, ...] = get_args(Kind)
_NAMED = 5
_TARGETS_A_THREAD = 64


class UndefinedCorrelationWarning(UserWarning):
    """Some targets have no correlation, and their entries are NaN."""


@dataclass(frozen=True)
class Correlation:
    """Correlation and two-sided p-value of each target.

    Attributes
    ----------
    r, p : float64 [T]
        NaN where undefined. p is NaN for fewer than three rows.
    constant, has_nan : bool [T]
        Why a target is undefined: one of its two columns is constant, or holds a NaN.
    """

    r: NDArray[np.float64]
    p: NDArray[np.float64]
    constant: NDArray[np.bool_]
    has_nan: NDArray[np.bool_]

    def put(self, targets: NDArray[np.int64], other: Correlation) -> None:
        """Set some targets to what was found for them in another way."""
        for name in ("r", "p", "constant", "has_nan"):
            getattr(self, name)[targets] = getattr(other, name)

    def warn(self, stacklevel: int = 2) -> None:
        """Warn with an :class:`UndefinedCorrelationWarning` if any target is undefined."""
        reasons = [
            f"{int(flags.sum())} of {flags.size} targets {why} "
            f"(target {', '.join(map(str, np.flatnonzero(flags)[:_NAMED]))}"
            f"{', …' if flags.sum() > _NAMED else ''})"
            for flags, why in ((self.has_nan, "hold a NaN"), (self.constant, "are constant"))
            if flags.any()
        ]
        if reasons:
            warnings.warn(
                "no correlation (NaN): " + " and ".join(reasons),
                UndefinedCorrelationWarning,
                stacklevel=stacklevel + 1,
            )


def spearman(a: Any, b: Any) -> NDArray[np.float64]:
    """Spearman's rank correlation with average ranks, exact up to one rounding.

    Parameters
    ----------
    a, b : real [M, T]

    Returns
    -------
    float64 [T]
        NaN, with an :class:`UndefinedCorrelationWarning`, for constant columns and columns with
        NaN.

    Raises
    ------
    ScoringError
        If the shapes differ or the values are not real numbers.
    """
    return _warned(correlate(a, b, "spearman"))


def pearson(a: Any, b: Any) -> NDArray[np.float64]:
    """Pearson's correlation in float64; parameters, result and errors as :func:`spearman`."""
    return _warned(correlate(a, b, "pearson"))


def kendall(a: Any, b: Any) -> NDArray[np.float64]:
    """Kendall's tau-b in O(M log M) a target; parameters, result, errors as :func:`spearman`."""
    return _warned(correlate(a, b, "kendall"))


def correlate(a: Any, b: Any, kind: Kind = "spearman") -> Correlation:
    """Correlate the columns of ``a`` and ``b``; the caller decides whether to warn.

    Parameters
    ----------
    a, b : real [M, T]
    kind : "spearman", "pearson" or "kendall"

    Raises
    ------
    ScoringError
        If the shapes differ, the values are not real numbers, or ``kind`` is unknown.
    """
    check_kind(kind)
    a, b = as_array(a, "a"), as_array(b, "b")
    if a.ndim != 2 or a.shape != b.shape:
        raise ScoringError(
            f"two arrays of one shape [M, T] are needed, not {list(a.shape)} and {list(b.shape)}"
        )
    count, targets = a.shape
    check_rows(count)
    parts = []
    for piece in blocks(targets, BLOCK_BYTES // (16 * max(count, 1))):
        if kind == "pearson":
            parts.append(pearson_of(a[:, piece], b[:, piece]))
        else:
            (ranks_a, nan_a), (ranks_b, nan_b) = (
                doubled_ranks(a[:, piece]),
                doubled_ranks(b[:, piece]),
            )
            parts.append(rank_correlation(ranks_a, ranks_b, nan_a | nan_b, kind))
    return join(parts)


def check_kind(kind: str) -> None:
    """Raise ScoringError unless ``kind`` names a correlation."""
    if kind not in get_args(Kind):
        raise ScoringError(f"unknown correlation {kind!r}; there are {', '.join(get_args(Kind))}")


def check_rows(count: int) -> None:
    """Raise ScoringError for fewer than two rows."""
    if count < 2:
        raise ScoringError(f"a correlation needs at least two rows, not {count}")


def join(parts: list[Correlation]) -> Correlation:
    """Concatenate the correlations of successive blocks of targets."""
    if not parts:
        none, no = np.empty(0), np.empty(0, dtype=bool)
        return Correlation(none, none, no, no)
    return Correlation(
        np.concatenate([part.r for part in parts]),
        np.concatenate([part.p for part in parts]),
        np.concatenate([part.constant for part in parts]),
        np.concatenate([part.has_nan for part in parts]),
    )


def rank_correlation(
    ranks_a: NDArray[np.int32],
    ranks_b: NDArray[np.int32],
    has_nan: NDArray[np.bool_],
    kind: Kind = "spearman",
) -> Correlation:
    """Spearman or Kendall correlation from doubled centred ranks.

    Parameters
    ----------
    ranks_a, ranks_b : int32 [T, M]
        As :func:`coarlib.statistics.ranks.doubled_ranks` returns them.
    has_nan : bool [T]
    """
    targets, count = ranks_a.shape
    constant = ~has_nan & ~(ranks_a.any(axis=1) & ranks_b.any(axis=1))
    undefined = has_nan | constant
    r = np.empty(targets)
    if kind == "kendall":
        r, p = kendall_of_ranks(ranks_a, ranks_b)
        p[undefined] = np.nan
    else:

        def work(piece: slice) -> None:
            _spearman_rows(ranks_a[piece], ranks_b[piece], r[piece])

        in_threads(work, targets, _TARGETS_A_THREAD)
    r[undefined] = np.nan
    return Correlation(r, p if kind == "kendall" else t_test(r, count), constant, has_nan)


def t_test(r: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Two-sided p-values of correlations over ``count`` rows under the null of no association.

    The t distribution with ``count - 2`` degrees of freedom: exact for Pearson's r of normal data,
    the usual approximation for Spearman's. NaN for fewer than three rows.
    """
    if count < 3:
        return np.full(r.shape, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(r) * np.sqrt((count - 2) / ((1 - r) * (1 + r)))
    return np.asarray(2 * special.stdtr(count - 2, -t))


def _warned(result: Correlation) -> NDArray[np.float64]:
    result.warn(stacklevel=3)
    return result.r


def pearson_of(a: NDArray[Any], b: NDArray[Any]) -> Correlation:
    """Correlate columns; centred first, so that a large common offset costs no digits."""
    count = a.shape[0]
    constant = (a == a[:1]).all(axis=0) | (b == b[:1]).all(axis=0)
    with np.errstate(all="ignore"):
        x, y = _centred(a), _centred(b)
        products = np.einsum("mt,mt->t", x, y)
        norms = np.sqrt(np.einsum("mt,mt->t", x, x) * np.einsum("mt,mt->t", y, y))
        r = np.clip(products / norms, -1, 1)
    has_nan = np.isnan(r) & ~constant  # an infinity has no mean either
    r[constant] = np.nan
    if count == 2:
        r = np.sign(r)
    return Correlation(r, t_test(r, count), constant, has_nan)


def _centred(values: NDArray[Any]) -> NDArray[np.float64]:
    """Subtract the column means and scale to a largest magnitude of 1, so no square overflows."""
    result = values.astype(np.float64)
    result /= np.abs(result).max(axis=0, initial=0)
    result -= result.mean(axis=0)
    result /= np.abs(result).max(axis=0, initial=0)
    result -= result.mean(axis=0)  # removes the rounding error of the first mean
    return result


@njit(nogil=True)
def _spearman_rows(
    ranks_a: NDArray[np.int32], ranks_b: NDArray[np.int32], r: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    for target in range(ranks_a.shape[0]):
        ab, aa, bb = np.int64(0), np.int64(0), np.int64(0)
        for row in range(ranks_a.shape[1]):
            x, y = np.int64(ranks_a[target, row]), np.int64(ranks_b[target, row])
            ab += x * y
            aa += x * x
            bb += y * y
        if aa == 0 or bb == 0:
            r[target] = np.nan
        elif aa == bb:  # r is exactly ±1 for equal and for opposite orders
            r[target] = ab / aa
        else:
            r[target] = ab / (np.sqrt(np.float64(aa)) * np.sqrt(np.float64(bb)))

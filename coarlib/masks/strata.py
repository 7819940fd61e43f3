"""Random subsets that keep a given number of every class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Strata", "proportional_sizes"]


def proportional_sizes(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Split ``total`` in proportion to ``counts`` by the largest remainders (Hamilton's method).

    Parameters
    ----------
    counts : int64 [C]
        Members of each class.
    total : int
        At most their sum.

    Returns
    -------
    int64 [C]
        Sums to ``total``; of equal remainders the first classes are rounded up.
    """
    sizes, remainders = np.divmod(total * counts, int(counts.sum()))
    missing = total - int(sizes.sum())
    sizes[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return np.asarray(sizes)


@dataclass(frozen=True)
class Strata:
    """Which class each of N features is of, and how many of each class are kept.

    Attributes
    ----------
    codes : int64 [N]
        Classes numbered from 0.
    kept_places : bool [N]
        With the features in order of class, shuffled within: whether a place is kept.
    """

    codes: NDArray[np.int64]
    kept_places: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: NDArray[np.int64], sizes: NDArray[np.int64]) -> Strata:
        """Keep ``sizes[c]`` of the c-th of the distinct ``labels`` in ascending order."""
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        first_of_class = np.repeat(np.cumsum(counts) - counts, counts)
        place_in_class = np.arange(len(labels)) - first_of_class
        return cls(codes, place_in_class < np.repeat(sizes, counts))

    def draw(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Keep those with the smallest random ``keys`` of their class; ties by position."""
        mask = np.empty(len(keys), dtype=np.bool_)
        mask[np.lexsort((keys, self.codes))] = self.kept_places
        return mask

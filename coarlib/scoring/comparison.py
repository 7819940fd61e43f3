"""Is one method better than another? The paired difference of two scores on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coarlib.errors import ScoringError
from coarlib.scoring.lds import LDSResult
from coarlib.scoring.regime import Regime
from coarlib.scoring.rows import named
from coarlib.statistics.intervals import Interval, difference_interval

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """How much better A is than B.

    Attributes
    ----------
    difference : float
        Mean LDS of A minus that of B.
    interval : Interval
        Of the difference, over the same rows.
    p : float
        Two-sided p-value of no difference; NaN where there is no interval.
    means : tuple of two float
    regime : Regime
        That both were measured in.
    """

    difference: float
    interval: Interval
    p: float
    means: tuple[float, float]
    regime: Regime

    def __repr__(self) -> str:
        return (
            f"difference {self.difference:+.3f} {self.interval}, p = {self.p:.2g} "
            f"({self.means[0]:.3f} and {self.means[1]:.3f}; {self.regime})"
        )


def compare(a: LDSResult, b: LDSResult, *, level: float = 0.95) -> Comparison:
    """Compare two scores of the same rows.

    The rows that are hard for one method are mostly hard for the other, so the difference is known
    much better than two separate intervals suggest.

    Parameters
    ----------
    a, b : LDSResult
        Of :func:`coarlib.scoring.lds`, with intervals.
    level : float

    Returns
    -------
    Comparison

    Raises
    ------
    ScoringError
        If they were measured in different regimes or on different targets, or without intervals.
    """
    for one in (a, b):
        if not isinstance(one, LDSResult):
            raise ScoringError(f"scores to compare are results of lds, not {type(one).__name__}")
    differs = a.regime.difference(b.regime)
    if differs:
        raise ScoringError(f"these scores cannot be compared: they differ in {differs}")
    undefined = np.isnan(a.correlation), np.isnan(b.correlation)
    only_one = np.flatnonzero(undefined[0] != undefined[1])
    if len(only_one):
        raise ScoringError(
            f"only one of the two has a correlation for {len(only_one)} targets (target "
            f"{named(only_one)}); leave these out of both"
        )
    if not a.influence.size or not b.influence.size:
        raise ScoringError(
            "one of these scores was computed with interval=False: no interval is known"
        )
    difference = a.mean - b.mean
    interval, p = difference_interval(difference, a.influence - b.influence, level)
    return Comparison(difference, interval, p, (a.mean, b.mean), a.regime)

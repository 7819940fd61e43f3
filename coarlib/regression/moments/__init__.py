"""Moments: the sums over rows that every fit of them needs; they add up."""

from coarlib.regression.moments.counts import int8_pairs
from coarlib.regression.moments.sums import Accumulator, Moments

__all__ = ["Accumulator", "Moments", "int8_pairs"]

"""Moments: the sums over rows that every fit of them needs; they add up."""

from coarlib.regression.moments.sums import Accumulator, Moments, int8_pairs

__all__ = ["Accumulator", "Moments", "int8_pairs"]

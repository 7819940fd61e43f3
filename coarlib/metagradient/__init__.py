"""Metagradients: how the weight of each training sample moves the outputs of the trained model.

:func:`metagradients` differentiates through a recorded run, :func:`metagradients_of_seeds` trains
with several seeds first and averages. Every result says how well its derivatives predict removals
(:class:`Smoothness`).
"""

from coarlib.metagradient.derivatives import metagradients, metagradients_of_seeds
from coarlib.metagradient.found import Metagradients
from coarlib.metagradient.smoothness import Smoothness

__all__ = ["Metagradients", "Smoothness", "metagradients", "metagradients_of_seeds"]

"""From a model to attributions in one call: what to buy next is decided by what is known so far."""

from coarlib.autopilot.run import attribute

__all__ = ["attribute"]

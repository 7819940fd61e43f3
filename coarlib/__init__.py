"""coarlib: counterfactual attribution at scale.

A counterfactual run is a row: one mask and the outputs measured under it. The packages make
rows, keep rows, turn rows into attributions and judge attributions; docs/architecture.md draws
how they depend on each other.
"""

__version__ = "0.1.0"

"""ExPLAIND: the exact path kernel, which explains predictions by a recorded training run.

:func:`explain` decomposes predictions by training sample, component, tensor and step;
:func:`predict` reconstructs them only. Runs are recorded by :mod:`coarlib.history`.
"""

from coarlib.path_kernel.decomposition import Decomposition
from coarlib.path_kernel.explain import explain
from coarlib.path_kernel.predict import predict

__all__ = ["Decomposition", "explain", "predict"]

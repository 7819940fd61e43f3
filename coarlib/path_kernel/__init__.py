"""ExPLAIND: training histories in stores, and the exact path kernel that explains predictions.

:func:`record` keeps the history of a training run, :func:`subject` puts it together with the model
and data, :func:`explain` decomposes predictions by training sample, component, tensor and step, and
:func:`predict` reconstructs them only.
"""

from coarlib.path_kernel.decomposition import Decomposition
from coarlib.path_kernel.explain import Subject, explain, subject
from coarlib.path_kernel.history import History
from coarlib.path_kernel.predict import predict
from coarlib.path_kernel.recorder import Recorder, record
from coarlib.path_kernel.resuming import restore
from coarlib.path_kernel.training import NormRegulariser, Samples, TrainingLoss

__all__ = [
    "Decomposition",
    "History",
    "NormRegulariser",
    "Recorder",
    "Samples",
    "Subject",
    "TrainingLoss",
    "explain",
    "predict",
    "record",
    "restore",
    "subject",
]

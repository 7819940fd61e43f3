"""Training histories: a run recorded row by row, and what every explanation reads of it.

:func:`record` keeps the history of a training run, :func:`open_run` puts it together with the model
and data. :mod:`coarlib.path_kernel` decomposes what the run did, :mod:`coarlib.metagradient`
differentiates through it.
"""

from coarlib.history.reading import History
from coarlib.history.recorder import HistoryRecorder, record
from coarlib.history.resuming import restore
from coarlib.history.run import RecordedRun, open_run
from coarlib.history.training import NormRegulariser, Samples, TrainingLoss

__all__ = [
    "History",
    "HistoryRecorder",
    "NormRegulariser",
    "RecordedRun",
    "Samples",
    "TrainingLoss",
    "open_run",
    "record",
    "restore",
]

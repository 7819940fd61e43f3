"""Training on subsets of the data: one by one or many models at once, as rows of a store."""

from coarlib.retraining.task import ReevaluateTask, RetrainTask
from coarlib.retraining.trainer import Trainer, run_seed
from coarlib.retraining.vectorised import SequentialTrainingWarning, train_many

__all__ = [
    "ReevaluateTask",
    "RetrainTask",
    "SequentialTrainingWarning",
    "Trainer",
    "run_seed",
    "train_many",
]

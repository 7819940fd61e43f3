"""Training on subsets of the data: one by one or many models at once, as rows of a store."""

from coarlib.retraining.functions import Estimator
from coarlib.retraining.randomness import run_seed
from coarlib.retraining.task import ReevaluateTask, RetrainTask, UntrainableRowWarning
from coarlib.retraining.trainer import Trainer
from coarlib.retraining.vectorised import SequentialTrainingWarning, train_many

__all__ = [
    "Estimator",
    "ReevaluateTask",
    "RetrainTask",
    "SequentialTrainingWarning",
    "Trainer",
    "UntrainableRowWarning",
    "run_seed",
    "train_many",
]

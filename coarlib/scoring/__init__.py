"""Judging attributions: rank correlation, LDS, and the other metrics of the field."""

from coarlib.scoring.arrays import masks_from_indices
from coarlib.scoring.bootstrap import Interval, bootstrap_interval, bootstrap_mean_interval
from coarlib.scoring.correlation import (
    Correlation,
    UndefinedCorrelationWarning,
    correlate,
    kendall,
    pearson,
    spearman,
)
from coarlib.scoring.datamodeling_score import LDSResult, lds
from coarlib.scoring.predictions import subset_sums

__all__ = [
    "Correlation",
    "Interval",
    "LDSResult",
    "UndefinedCorrelationWarning",
    "bootstrap_interval",
    "bootstrap_mean_interval",
    "correlate",
    "kendall",
    "lds",
    "masks_from_indices",
    "pearson",
    "spearman",
    "subset_sums",
]

"""Judging attributions: rank correlation, LDS, and the other metrics of the field."""

from coarlib.scoring.ceiling import NoiseCeiling, noise_ceiling
from coarlib.scoring.comparison import Comparison, compare
from coarlib.scoring.lds import LDSResult, lds
from coarlib.scoring.leave_out import group_loo, loo_corr
from coarlib.scoring.mislabel import Detection, flip_label, mislabel_detection_auc
from coarlib.scoring.nonfinite import InfiniteOutputsWarning
from coarlib.scoring.regime import Regime
from coarlib.scoring.removal import RemovalCurve, brittleness, removal_curve, removal_masks
from coarlib.scoring.rows import RowsLeftOutWarning
from coarlib.scoring.subset_sums import subset_sums
from coarlib.statistics.arrays import masks_from_indices
from coarlib.statistics.correlation import (
    Correlation,
    UndefinedCorrelationWarning,
    correlate,
    kendall,
    pearson,
    spearman,
)
from coarlib.statistics.intervals import Interval, correlation_interval

__all__ = [
    "Comparison",
    "Correlation",
    "Detection",
    "InfiniteOutputsWarning",
    "Interval",
    "LDSResult",
    "NoiseCeiling",
    "Regime",
    "RemovalCurve",
    "RowsLeftOutWarning",
    "UndefinedCorrelationWarning",
    "brittleness",
    "compare",
    "correlate",
    "correlation_interval",
    "flip_label",
    "group_loo",
    "kendall",
    "lds",
    "loo_corr",
    "masks_from_indices",
    "mislabel_detection_auc",
    "noise_ceiling",
    "pearson",
    "removal_curve",
    "removal_masks",
    "spearman",
    "subset_sums",
]

"""Ways of ablating: what it means that a component is not there. One class a file."""

from coarlib.ablation.ways.activations import ActivationAblation
from coarlib.ablation.ways.base import ABLATIONS, Ablation, Context, ablation_named, register
from coarlib.ablation.ways.mean import Mean
from coarlib.ablation.ways.resample import Resample
from coarlib.ablation.ways.scale_weights import ScaleWeights
from coarlib.ablation.ways.weights import WeightAblation
from coarlib.ablation.ways.zero_activation import ZeroActivation
from coarlib.ablation.ways.zero_weights import ZeroWeights

__all__ = [
    "ABLATIONS",
    "Ablation",
    "ActivationAblation",
    "Context",
    "Mean",
    "Resample",
    "ScaleWeights",
    "WeightAblation",
    "ZeroActivation",
    "ZeroWeights",
    "ablation_named",
    "register",
]

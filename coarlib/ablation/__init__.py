"""Component sets of any ``nn.Module``, ways to ablate them, and outputs under ablation."""

from coarlib.ablation.components import ComponentGroup, ComponentSet
from coarlib.ablation.examples import Examples
from coarlib.ablation.given import ablate
from coarlib.ablation.hierarchy import Hierarchy
from coarlib.ablation.selection import KINDS, PRESETS, find_components, preset
from coarlib.ablation.slices import ParameterSlice, SliceGroup, slice_components
from coarlib.ablation.task import ComponentTask
from coarlib.ablation.ways import ABLATIONS, Ablation, ActivationAblation, WeightAblation, register

__all__ = [
    "ABLATIONS",
    "KINDS",
    "PRESETS",
    "Ablation",
    "ActivationAblation",
    "ComponentGroup",
    "ComponentSet",
    "ComponentTask",
    "Examples",
    "Hierarchy",
    "ParameterSlice",
    "SliceGroup",
    "WeightAblation",
    "ablate",
    "find_components",
    "preset",
    "register",
    "slice_components",
]

"""Component sets of any ``nn.Module``, ways to ablate them, and outputs under ablation."""

from coarlib.ablation.ablate import WeightAblation
from coarlib.ablation.components import ComponentGroup, ComponentSet
from coarlib.ablation.replace import ActivationAblation
from coarlib.ablation.selection import KINDS, PRESETS, find_components, preset
from coarlib.ablation.slices import ParameterSlice, SliceGroup, slice_components
from coarlib.ablation.task import ComponentTask, Examples

__all__ = [
    "KINDS",
    "PRESETS",
    "ActivationAblation",
    "ComponentGroup",
    "ComponentSet",
    "ComponentTask",
    "Examples",
    "ParameterSlice",
    "SliceGroup",
    "WeightAblation",
    "find_components",
    "preset",
    "slice_components",
]

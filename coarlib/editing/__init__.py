"""COAR-Edit: change what a model does by ablating the components that attributions name.

Given attributions, components are scored by how much more they matter for target examples than
for reference examples; ablating the highest-scored ones lowers the targets' outputs, ablating the
lowest-scored ones raises them, and the rest of the examples should hardly notice (Shah, Ilyas,
Madry 2024, §6).
"""

from coarlib.editing.edit import Edit
from coarlib.editing.scores import STATISTICS, rank_components, score_components
from coarlib.editing.search import EditPlan, Effect, Groups, choose, effects, plan_edit

__all__ = [
    "STATISTICS",
    "Edit",
    "EditPlan",
    "Effect",
    "Groups",
    "choose",
    "effects",
    "plan_edit",
    "rank_components",
    "score_components",
]

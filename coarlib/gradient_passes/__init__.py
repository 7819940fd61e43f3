"""Gradient passes: what a component does to every output, by one backward pass a random mask.

In pass k example t has a mask of its own, m in [0, 1]^N. Each component is *on a path* with
probability b (m_j = u, u uniform on [0, 1]), ablated with probability a (m_j = 0), and kept
otherwise. One forward and one backward pass give the output y_kt and g_kt = ∂y/∂m. For components
on a path E[g_j] = E[y(m_j = 1) - y(m_j = 0)]: the effect of keeping the component among such
ablations, without the bias that saturation gives to a gradient at the intact model.

A pass costs three forward passes and tells of every component; a row of ablations costs one and
tells of all of them together. ``coarlib.regression`` joins both.

*Trials* are forward passes in which every example has an ablation of its own. Rows share one, so
what a row leaves unexplained moves all examples together; trials are independent of one another,
and judge predictions as surely as many times as many rows.
"""

from coarlib.gradient_passes.filling import PASSES_DIR, fill_passes, open_passes
from coarlib.gradient_passes.plan import PassPlan
from coarlib.gradient_passes.sums import PassSums, Trials, read_passes, read_trials

__all__ = [
    "PASSES_DIR",
    "PassPlan",
    "PassSums",
    "Trials",
    "fill_passes",
    "open_passes",
    "read_passes",
    "read_trials",
]

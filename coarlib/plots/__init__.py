"""Every figure as a function that returns a matplotlib figure.

By default a figure is new; ``axes=`` draws into axes of your own, one or as many as the figure has
panels, and returns the figure that they are of. Save one for a paper
with ``figure.savefig("figure.pdf")``: vector, fonts embedded, colours that colour-blind readers can
tell apart (:mod:`coarlib.plots.style`).
"""

from __future__ import annotations

from coarlib.plots.attribution_figures import (
    Explained,
    attribution_bars,
    contribution_over_steps,
    layer_map,
    nearest_examples,
)
from coarlib.plots.data_figures import (
    lds_distribution,
    mask_balance,
    outputs_under_masks,
    scoreboard,
)
from coarlib.plots.fit_figures import (
    correlation_against_cost,
    correlation_against_fraction,
    correlation_histogram,
    learning_curve,
    method_distributions,
    predicted_against_true,
    ranked_correlations,
)
from coarlib.plots.panels import attribution_panels, plot_against_fraction, plot_attributions
from coarlib.plots.path_figures import (
    helpful_and_harmful,
    influence_over_steps,
    kernel_similarity,
    layer_kernels,
    source_balance,
    training_curves,
)

__all__ = [
    "Explained",
    "attribution_bars",
    "attribution_panels",
    "contribution_over_steps",
    "correlation_against_cost",
    "correlation_against_fraction",
    "correlation_histogram",
    "helpful_and_harmful",
    "influence_over_steps",
    "kernel_similarity",
    "layer_kernels",
    "layer_map",
    "lds_distribution",
    "learning_curve",
    "mask_balance",
    "method_distributions",
    "nearest_examples",
    "outputs_under_masks",
    "plot_against_fraction",
    "plot_attributions",
    "predicted_against_true",
    "ranked_correlations",
    "scoreboard",
    "source_balance",
    "training_curves",
]

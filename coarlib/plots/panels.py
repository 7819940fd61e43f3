"""Figures of several parts, and figures written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from coarlib.plots.attribution_figures import Explained, bar_limits, draw_bars, draw_image
from coarlib.plots.fit_figures import correlation_against_fraction, draw_correlations
from coarlib.plots.style import save_png, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attribution_panels", "plot_against_fraction", "plot_attributions"]


def attribution_panels(
    correlations: Mapping[str, NDArray[Any]],
    examples: Sequence[Explained],
    title: str,
    output: str = "margin",
) -> Figure:
    """Draw how well methods predict ablations, and what matters for a few examples.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        Correlation of each target's predicted and true outputs on held-out ablations.
    examples : sequence of Explained
    title : str
    output : str
        What the weights are changes of.
    """
    with styled() as plt:
        figure = plt.figure(figsize=(11, 2.2 + 2.1 * len(examples)))
        figure.suptitle(title, fontsize=12)
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, max(len(examples), 1)])
        draw_correlations(top.subplots(), correlations)
        grid = bottom.subplots(len(examples), 2, width_ratios=[1.6, 5], squeeze=False)
        limits = bar_limits([(example.weights, example.errors) for example in examples])
        for axes, example in zip(grid, examples, strict=True):
            draw_image(axes[0], example.image, example.title)
            draw_bars(axes[1], example.names, example.weights, example.errors, limits)
        grid[-1][1].set_xlabel(
            f"change of the {output} when the component is kept, with 95% interval "
            "(blue raises it, orange lowers it)"
        )
        return figure


def plot_attributions(
    path: str | Path,
    correlations: Mapping[str, NDArray[Any]],
    examples: Sequence[Explained],
    title: str,
    output: str = "margin",
) -> Path:
    """Write :func:`attribution_panels` as a PNG; SetupError if matplotlib is missing."""
    return save_png(attribution_panels(correlations, examples, title, output), path)


def plot_against_fraction(
    path: str | Path,
    fractions: Sequence[float],
    means: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    *,
    trained_at: float | None = None,
    title: str = "",
) -> Path:
    """Write :func:`correlation_against_fraction` as a PNG; SetupError if matplotlib is missing."""
    figure = correlation_against_fraction(
        fractions, means, intervals, trained_at=trained_at, title=title
    )
    return save_png(figure, path)

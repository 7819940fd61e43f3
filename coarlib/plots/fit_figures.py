"""Figures of how well attributions predict: correlations, scatter, fractions, learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import METHODS, number, shortened
from coarlib.plots.style import COLOURS, HELPS, INK, drawn_on, line_style, panels_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "correlation_against_cost",
    "correlation_against_fraction",
    "correlation_histogram",
    "draw_correlations",
    "learning_curve",
    "method_distributions",
    "predicted_against_true",
    "ranked_correlations",
]

COLUMNS, FEW = 3, 3


def correlation_histogram(
    correlations: Mapping[str, NDArray[Any]], of_what: str = "examples", *, axes: Axes | None = None
) -> Figure:
    """Draw the distribution over targets of each method's correlation.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        NaN where undefined.
    of_what : str
        What the targets are.
    """
    with drawn_on(axes, (7, 3.2)) as (figure, panel):
        draw_correlations(panel, correlations)
        panel.set_ylabel(f"number of {of_what}")
        return figure


def draw_correlations(axes: Any, correlations: Mapping[str, NDArray[Any]]) -> None:
    """Draw histograms of correlations, each with its name and mean, into ``axes``."""
    finite = {name: np.asarray(v)[np.isfinite(v)] for name, v in correlations.items()}
    low = min((float(values.min()) for values in finite.values() if values.size), default=0.0)
    bins = np.linspace(min(low, 0), 1, 81)
    for at, (method, values) in enumerate(finite.items()):
        style = line_style(at)
        mean = float(values.mean()) if values.size else 0.0
        counts, _, _ = axes.hist(values, bins, color=style["color"], alpha=0.35)
        axes.hist(values, bins, histtype="step", lw=1.4, **style)
        axes.annotate(
            f"{method}\nmean {number(mean, 2)}" if values.size else f"{method}: undefined",
            (mean, float(np.max(counts))),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontweight="bold",
        )
    axes.margins(y=0.3)
    axes.set(
        xlabel="correlation of predicted and true output over held-out rows",
        ylabel="number of test examples",
        xlim=(bins[0], 1),
    )


def method_distributions(
    correlations: Mapping[str, NDArray[Any]],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    *,
    of_what: str = "unseen rows",
    axes: Axes | None = None,
) -> Figure:
    """Draw each method's correlations over targets as a shape, its mean and interval as a mark.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        NaN where undefined; the first method is drawn in colour.
    intervals : mapping of method to (low, high), optional
        Of the means.
    of_what : str
        What was predicted.
    """
    finite = {name: np.asarray(v)[np.isfinite(v)] for name, v in correlations.items()}
    ends = [end for pair in (intervals or {}).values() for end in pair if np.isfinite(end)]
    low = min([0.0, *ends, *(float(values.min()) for values in finite.values() if values.size)])
    bins = np.linspace(low, 1, 61)
    middle = (bins[1:] + bins[:-1]) / 2
    with drawn_on(axes, (6.4, 0.9 + 0.62 * len(finite))) as (figure, panel):
        for at, (name, values) in enumerate(finite.items()):
            place = len(finite) - 1 - at
            if not values.size:
                continue
            share = np.histogram(values, bins)[0].astype(float)
            colour = HELPS if at == 0 else COLOURS[2]
            tall = place + 0.72 * share / share.max()
            panel.fill_between(middle, place, tall, step="mid", color=colour, alpha=0.45, lw=0)
            mean = float(values.mean())
            span = (intervals or {}).get(name, (np.nan, np.nan))
            panel.plot(span, [place, place], color=INK, lw=3, solid_capstyle="butt")
            panel.plot(mean, place, "|", color=INK, ms=10, mew=1.6)
            panel.annotate(
                number(mean, 2), (1.02, place), va="center", weight="bold", annotation_clip=False
            )
        panel.axvline(0, color=INK, lw=0.5)
        panel.set_yticks(range(len(finite)), [*map(shortened, finite)][::-1])
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set(xlim=(bins[0], 1), ylim=(-0.25, len(finite)))
        panel.set_xlabel(f"correlation of predicted and measured output over {of_what}")
        return figure


def ranked_correlations(
    pearson: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    shown: int = 200,
    *,
    axes: Axes | None = None,
) -> Figure:
    """Draw each target's held-out correlation with its interval, in ascending order.

    Parameters
    ----------
    pearson, low, high : float [T]
    shown : int
        At most so many targets, evenly spaced in the order.
    """
    order = np.argsort(pearson)[: int(np.isfinite(pearson).sum())]
    picked = np.unique(np.linspace(0, max(len(order) - 1, 0), min(shown, len(order))).round())
    places = picked.astype(np.int64)
    chosen = order[places]
    with drawn_on(axes, (7, 3.2)) as (figure, panel):
        share = 100 * (places + 0.5) / max(len(order), 1)
        panel.vlines(share, low[chosen], high[chosen], color=COLOURS[6], lw=1.2)
        panel.plot(share, pearson[chosen], ".", color=HELPS, ms=4)
        panel.axhline(0, color=INK, lw=0.5)
        panel.set(xlabel="percentile of targets", ylabel="held-out correlation, 95% interval")
        return figure


def predicted_against_true(
    predicted: NDArray[Any],
    true: NDArray[Any],
    titles: Sequence[str],
    most_points: int = 400,
    *,
    output: str = "output",
    axes: Any = None,
) -> Figure:
    """Draw predicted against measured outputs, a panel a target, with the line of equality.

    Parameters
    ----------
    predicted, true : float [K, P]
        Held-out rows of P targets.
    titles : sequence of P str
    most_points : int
        Points of a panel; evenly spaced rows where there are more.
    output : str
        What is predicted, with its unit.
    axes : matplotlib.axes.Axes [P], optional
        Where to draw; by default a new figure.
    """
    panels = len(titles)
    rows = np.linspace(0, len(true) - 1, min(len(true), most_points)).astype(np.int64)
    lines = 1 if axes is not None else -(-panels // COLUMNS)
    wide = panels if axes is not None else min(COLUMNS, panels)
    with panels_on(axes, lines, wide, (2.5 * wide, 2.6 * lines)) as (figure, grid):
        for panel in grid.ravel()[panels:]:
            panel.set_visible(False)
        for at, (panel, title) in enumerate(zip(grid.ravel(), titles, strict=False)):
            p, y = predicted[rows, at], true[rows, at]
            bounds = float(min(p.min(), y.min())), float(max(p.max(), y.max()))
            panel.plot(bounds, bounds, color=INK, lw=0.6)
            panel.plot(p, y, ".", ms=3, color=HELPS, alpha=0.6, mew=0)
            panel.set_title(shortened(title))
        if axes is None:
            figure.supxlabel(f"predicted {output}", fontsize=9)
            figure.supylabel(f"measured {output}", fontsize=9)
        else:
            grid[0][0].set(xlabel=f"predicted {output}", ylabel=f"measured {output}")
        return figure


def correlation_against_fraction(
    fractions: Sequence[float],
    means: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    *,
    trained_at: float | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw mean correlation against the ablated fraction α, one line a method.

    Parameters
    ----------
    fractions : sequence of float
    means, intervals : mapping of method to one entry a fraction
        A method without intervals is drawn as a line alone.
    trained_at : float, optional
        The α of the rows that were fitted; marked by a vertical line.
    title : str
    """
    with drawn_on(axes, (6.4, 4)) as (figure, panel):
        for at, (method, values) in enumerate(means.items()):
            style = line_style(at)
            name = METHODS.get(method, method)
            panel.plot(fractions, values, marker="o", ms=4, label=name, **style)
            if method in intervals:
                low, high = np.transpose(intervals[method])
                panel.fill_between(fractions, low, high, color=style["color"], alpha=0.2, lw=0)
        if trained_at is not None:
            panel.axvline(trained_at, color=INK, lw=0.8, ls=":")
            place = (trained_at, panel.get_ylim()[0])
            panel.annotate(
                "fitted here", place, (3, 3), textcoords="offset points", fontsize=8, rotation=90
            )
        panel.axhline(0, color=INK, lw=0.5)
        panel.set(xlabel="ablated fraction α", ylabel="mean correlation over targets", title=title)
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}  # where it would hide lines
        panel.legend(**(beside if len(means) > FEW else {}))
        return figure


def correlation_against_cost(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw mean correlation against what it cost, a line or a point a method.

    Parameters
    ----------
    points : mapping of method to (costs, correlations)
        Costs in forward passes over the examples; a method that costs nothing is drawn at 1. One
        without points keeps its colour for figures that stand beside this one.
    intervals : mapping of method to one (low, high) a point
    title : str
    """
    with drawn_on(axes, (6.4, 4)) as (figure, panel):
        for at, (method, (costs, values)) in enumerate(points.items()):
            if not len(costs):
                continue
            style, places = line_style(at), np.maximum(costs, 1)
            if len(costs) == 1:  # no line to be read between points
                style |= {"ls": ""}
            panel.plot(places, values, marker="o", ms=5, label=METHODS.get(method, method), **style)
            for place, (low, high) in zip(places, intervals.get(method, ()), strict=False):
                panel.plot([place, place], [low, high], color=style["color"], lw=1)
        panel.set_xscale("log")
        panel.axhline(0, color=INK, lw=0.5)
        panel.set(
            xlabel="cost in forward passes over the examples",
            ylabel="mean correlation over targets",
            title=title,
        )
        panel.legend(fontsize=8, frameon=True, framealpha=1, edgecolor="none")
        return figure


def learning_curve(
    num_rows: NDArray[Any],
    mean: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    predicted: tuple[float, float] | None = None,
    *,
    axes: Axes | None = None,
) -> Figure:
    """Draw held-out correlation against the number of rows of the fit.

    Parameters
    ----------
    num_rows, mean, low, high : float [P]
        Means over targets with their intervals.
    predicted : (rows, correlation), optional
        What more rows are expected to give; drawn as an open circle.
    """
    with drawn_on(axes, (6.4, 3.4)) as (figure, panel):
        panel.fill_between(num_rows, low, high, color=HELPS, alpha=0.2, lw=0)
        panel.plot(num_rows, mean, "-o", ms=4, color=HELPS, label="measured")
        ticks = [int(rows) for rows in num_rows]
        if predicted is not None:
            x, y = [num_rows[-1], predicted[0]], [mean[-1], predicted[1]]
            panel.plot(x, y, "--", color=COLOURS[5])
            panel.plot(x[1:], y[1:], "o", mfc="none", color=COLOURS[5], label="predicted")
            ticks.append(int(predicted[0]))
            panel.legend(loc="lower right")
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{rows:,}" for rows in ticks])
        panel.minorticks_off()
        panel.set(xlabel="rows in the fit", ylabel="mean held-out correlation")
        return figure

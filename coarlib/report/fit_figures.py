"""Figures of how well attributions predict: correlations, scatter, fractions, learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.report.style import COLOURS, HELPS, INK, line_style, styled

__all__ = [
    "correlation_against_fraction",
    "correlation_histogram",
    "draw_correlations",
    "learning_curve",
    "predicted_against_true",
    "ranked_correlations",
]

COLUMNS = 3


def correlation_histogram(
    correlations: Mapping[str, NDArray[Any]], of_what: str = "examples"
) -> Any:
    """Draw the distribution over targets of each method's correlation.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        NaN where undefined.
    of_what : str
        What the targets are.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(7, 3.2))
        draw_correlations(axes, correlations)
        axes.set_ylabel(f"number of {of_what}")
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
            f"{method}\nmean {mean:.2f}" if values.size else f"{method}: undefined",
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


def ranked_correlations(
    pearson: NDArray[Any], low: NDArray[Any], high: NDArray[Any], shown: int = 200
) -> Any:
    """Draw each target's held-out correlation with its interval, in ascending order.

    Parameters
    ----------
    pearson, low, high : float [T]
    shown : int
        At most so many targets, evenly spaced in the order.

    Returns
    -------
    matplotlib.figure.Figure
    """
    order = np.argsort(pearson)[: int(np.isfinite(pearson).sum())]
    picked = np.unique(np.linspace(0, max(len(order) - 1, 0), min(shown, len(order))).round())
    places = picked.astype(np.int64)
    chosen = order[places]
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(7, 3.2))
        share = 100 * (places + 0.5) / max(len(order), 1)
        axes.vlines(share, low[chosen], high[chosen], color=COLOURS[6], lw=1.2)
        axes.plot(share, pearson[chosen], ".", color=HELPS, ms=4)
        axes.axhline(0, color=INK, lw=0.5)
        axes.set(xlabel="percentile of targets", ylabel="held-out correlation, 95% interval")
        return figure


def predicted_against_true(
    predicted: NDArray[Any], true: NDArray[Any], titles: Sequence[str], most_points: int = 400
) -> Any:
    """Draw predicted against measured outputs, a panel a target, with the line of equality.

    Parameters
    ----------
    predicted, true : float [K, P]
        Held-out rows of P targets.
    titles : sequence of P str
    most_points : int
        Points of a panel; evenly spaced rows where there are more.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = len(titles)
    rows = np.linspace(0, len(true) - 1, min(len(true), most_points)).astype(np.int64)
    lines = -(-panels // COLUMNS)
    with styled() as plt:
        figure, grid = plt.subplots(lines, COLUMNS, figsize=(7.4, 2.6 * lines), squeeze=False)
        for axes in grid.ravel()[panels:]:
            axes.set_visible(False)
        for at, (axes, title) in enumerate(zip(grid.ravel(), titles, strict=False)):
            p, y = predicted[rows, at], true[rows, at]
            bounds = float(min(p.min(), y.min())), float(max(p.max(), y.max()))
            axes.plot(bounds, bounds, color=INK, lw=0.6)
            axes.plot(p, y, ".", ms=3, color=HELPS, alpha=0.6, mew=0)
            axes.set_title(title)
        figure.supxlabel("predicted output", fontsize=9)
        figure.supylabel("measured output", fontsize=9)
        return figure


def correlation_against_fraction(
    fractions: Sequence[float],
    means: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    *,
    trained_at: float | None = None,
    title: str = "",
) -> Any:
    """Draw mean correlation against the ablated fraction α, one line a method.

    Parameters
    ----------
    fractions : sequence of float
    means, intervals : mapping of method to one entry a fraction
        A method without intervals is drawn as a line alone.
    trained_at : float, optional
        The α of the rows that were fitted; marked by a vertical line.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4))
        for at, (method, values) in enumerate(means.items()):
            style = line_style(at)
            axes.plot(fractions, values, marker="o", ms=4, label=method, **style)
            if method in intervals:
                low, high = np.transpose(intervals[method])
                axes.fill_between(fractions, low, high, color=style["color"], alpha=0.2, lw=0)
        if trained_at is not None:
            axes.axvline(trained_at, color=INK, lw=0.8, ls=":")
            axes.annotate("fitted here", (trained_at, axes.get_ylim()[0]), fontsize=8, rotation=90)
        axes.axhline(0, color=INK, lw=0.5)
        axes.set(xlabel="ablated fraction α", ylabel="mean correlation over targets", title=title)
        figure.legend(loc="outside right upper")
        return figure


def learning_curve(
    num_rows: NDArray[Any],
    mean: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    predicted: tuple[float, float] | None = None,
) -> Any:
    """Draw held-out correlation against the number of rows of the fit.

    Parameters
    ----------
    num_rows, mean, low, high : float [P]
        Means over targets with their intervals.
    predicted : (rows, correlation), optional
        What more rows are expected to give; drawn as an open circle.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 3.4))
        axes.fill_between(num_rows, low, high, color=HELPS, alpha=0.2, lw=0)
        axes.plot(num_rows, mean, "-o", ms=4, color=HELPS, label="measured")
        ticks = [int(rows) for rows in num_rows]
        if predicted is not None:
            x, y = [num_rows[-1], predicted[0]], [mean[-1], predicted[1]]
            axes.plot(x, y, "--", color=COLOURS[5])
            axes.plot(x[1:], y[1:], "o", mfc="none", color=COLOURS[5], label="predicted")
            ticks.append(int(predicted[0]))
            axes.legend(loc="lower right")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks])
        axes.minorticks_off()
        axes.set(xlabel="rows in the fit", ylabel="mean held-out correlation")
        return figure

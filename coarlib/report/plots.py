"""Figures, in colours that colour-blind readers can tell apart.

matplotlib is imported when a figure is drawn, so that the library works without it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import SetupError

# Okabe & Ito (2008).
COLOURS = ("#0072B2", "#E69F00", "#999999", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
HELPS, HURTS = "#0072B2", "#D55E00"
LINE_STYLES = ("-", "--", ":", "-.")
DOTS_PER_INCH = 150
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Explained:
    """One example and the components that matter most for it.

    Attributes
    ----------
    image : array [H, W] or [H, W, 3]
    title : str
    names : sequence of str
        Names of the components, strongest first.
    weights : float [K]
        What keeping each adds to the output.
    errors : float [K] or None
        Half-widths of their intervals.
    """

    image: NDArray[Any]
    title: str
    names: Sequence[str]
    weights: NDArray[Any]
    errors: NDArray[Any] | None = None


def plot_attributions(
    path: str | Path,
    correlations: Mapping[str, NDArray[Any]],
    examples: Sequence[Explained],
    title: str,
    output: str = "margin",
) -> Path:
    """Draw how well methods predict ablations, and what matters for a few examples.

    Parameters
    ----------
    path : str or Path
        The PNG to write; it appears whole.
    correlations : mapping of method to float [T]
        Correlation of each target's predicted and true outputs on held-out ablations.
    examples : sequence of Explained
    title : str
    output : str
        What the weights are changes of.

    Raises
    ------
    SetupError
        If matplotlib is missing.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 2.2 + 2.1 * len(examples)), layout="constrained")
        figure.suptitle(title, fontsize=12)
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, max(len(examples), 1)])
        _correlations(top.subplots(), correlations)
        grid = bottom.subplots(len(examples), 2, width_ratios=[1.6, 5], squeeze=False)
        weights = np.concatenate([np.append(example.weights, 0) for example in examples])
        limits = 1.2 * float(weights.min()), 1.2 * float(weights.max())
        for axes, example in zip(grid, examples, strict=True):
            _image(axes[0], example)
            _weights(axes[1], example, limits)
        grid[-1][1].set_xlabel(
            f"change of the {output} when the component is kept, with 95% interval "
            "(blue raises it, orange lowers it)"
        )
        return _save(figure, path)


def plot_against_fraction(
    path: str | Path,
    fractions: Sequence[float],
    means: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    *,
    trained_at: float | None = None,
    title: str = "",
) -> Path:
    """Draw mean correlation against the ablated fraction α, one line a method.

    Parameters
    ----------
    path : str or Path
        The PNG to write.
    fractions : sequence of float
    means, intervals : mapping of method to one entry a fraction
    trained_at : float, optional
        The α of the rows that were fitted; marked by a vertical line.
    title : str

    Raises
    ------
    SetupError
        If matplotlib is missing.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
        for at, (method, values) in enumerate(means.items()):
            low, high = np.transpose(intervals[method])
            style = {"color": COLOURS[at % len(COLOURS)], "ls": LINE_STYLES[at % 4]}
            axes.plot(fractions, values, marker="o", ms=4, label=method, **style)
            axes.fill_between(fractions, low, high, color=style["color"], alpha=0.2, lw=0)
        if trained_at is not None:
            axes.axvline(trained_at, color="black", lw=0.8, ls=":")
            axes.annotate("fitted here", (trained_at, axes.get_ylim()[0]), fontsize=8, rotation=90)
        axes.axhline(0, color="black", lw=0.5)
        axes.set(xlabel="ablated fraction α", ylabel="mean correlation over targets", title=title)
        axes.legend()
        return _save(figure, path)


def _correlations(axes: Any, correlations: Mapping[str, NDArray[Any]]) -> None:
    low = min(float(np.nanmin(values)) for values in correlations.values())
    bins = np.linspace(min(low, 0), 1, 81)
    for at, (method, values) in enumerate(correlations.items()):
        colour = COLOURS[at % len(COLOURS)]
        style = {"color": colour, "ls": LINE_STYLES[at % len(LINE_STYLES)]}
        mean = float(np.nanmean(values))
        counts, _, _ = axes.hist(values, bins, color=colour, alpha=0.35)
        axes.hist(values, bins, histtype="step", lw=1.4, **style)
        axes.annotate(
            f"{method}\nmean {mean:.2f}",
            (mean, float(np.max(counts))),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour if colour != COLOURS[2] else "#555555",
            fontweight="bold",
        )
    axes.margins(y=0.3)
    axes.set(
        xlabel="correlation of predicted and true output over held-out ablations",
        ylabel="number of test examples",
        xlim=(bins[0], 1),
    )


def _image(axes: Any, example: Explained) -> None:
    axes.imshow(example.image, cmap="gray_r" if example.image.ndim == 2 else None)
    axes.set_title(example.title)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _weights(axes: Any, example: Explained, limits: tuple[float, float]) -> None:
    places = np.arange(len(example.weights))[::-1]
    colours = [HELPS if weight > 0 else HURTS for weight in example.weights]
    axes.barh(places, example.weights, xerr=example.errors, color=colours, height=0.7, ecolor="k")
    axes.set_yticks(places, example.names)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlim(*limits)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise SetupError(
            "a figure needs matplotlib; install it with: pip install 'coarlib[report]'"
        ) from error
    if not os.environ.get("MPLBACKEND") and "matplotlib.pyplot" not in __import__("sys").modules:
        mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".png", delete=False) as draft:
        figure.savefig(draft, dpi=DOTS_PER_INCH, format="png")
    os.replace(draft.name, path)
    _pyplot().close(figure)
    return path

"""Figures of attributions themselves: strongest features, layers, nearest examples, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import shortened
from coarlib.plots.style import HELPS, HURTS, INK, drawn_on, line_style, panels_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Explained",
    "attribution_bars",
    "bar_limits",
    "contribution_over_steps",
    "draw_bars",
    "draw_image",
    "layer_map",
    "nearest_examples",
]

LONGEST_CLASS, LONGEST_TITLE, INCHES_A_LETTER = 20, 28, 0.07
LABEL = 30  # letters of a line beside a colour bar
LETTERS_A_COLUMN = 6  # of the layer map; longer names stand slanted


@dataclass(frozen=True)
class Explained:
    """One example and the features (components, training examples) that matter most for it.

    Attributes
    ----------
    image : array [H, W] or [H, W, 3]
    title : str
    names : sequence of str
        Names of the features, strongest first.
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


def attribution_bars(
    names: Sequence[str],
    weights: NDArray[Any],
    errors: NDArray[Any] | None = None,
    *,
    image: NDArray[Any] | None = None,
    title: str = "",
    output: str = "output",
    axes: Any = None,
) -> Figure:
    """Draw the strongest features of one example as bars, with its image beside them.

    Parameters
    ----------
    names : sequence of K str
    weights : float [K]
    errors : float [K], optional
        Half-widths of intervals.
    image : array [H, W] or [H, W, 3], optional
    title, output : str
    axes : matplotlib.axes.Axes, or two where there is an image, optional
        Where to draw; by default a new figure.
    """
    height = 0.8 + 0.26 * len(names)
    shape = (1, (5.5, height)) if image is None else (2, (7.4, max(height, 2)))
    ratios: dict[str, Any] = {} if image is None else {"width_ratios": [1.4, 4]}
    with panels_on(axes, 1, *shape, **ratios) as (figure, grid):
        bars = grid[0][-1]
        if image is not None:
            draw_image(grid[0][0], image)
        draw_bars(bars, names, weights, errors, bar_limits([(weights, errors)]))
        bars.set(xlabel=f"change of the {output} when kept", title=title)
        return figure


def draw_image(axes: Any, image: NDArray[Any], title: str = "") -> None:
    """Draw an image without ticks; grey ones dark on light."""
    axes.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
    axes.set_title("\n".join(shortened(line, LONGEST_TITLE) for line in title.splitlines()))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def bar_limits(bars: Sequence[tuple[NDArray[Any], NDArray[Any] | None]]) -> tuple[float, float]:
    """Return ends of an axis on which bars, and their intervals, are whole, with some room."""
    low = high = 0.0
    for weights, errors in bars:
        half = np.zeros(len(weights)) if errors is None else np.nan_to_num(errors)
        low = min(low, float((weights - half).min(initial=0)))
        high = max(high, float((weights + half).max(initial=0)))
    return 1.1 * low, 1.1 * high


def draw_bars(
    axes: Any,
    names: Sequence[str],
    weights: NDArray[Any],
    errors: NDArray[Any] | None,
    limits: tuple[float, float],
) -> None:
    """Draw signed horizontal bars, the first on top."""
    places = np.arange(len(weights))[::-1]
    colours = [HELPS if weight > 0 else HURTS for weight in weights]
    axes.barh(places, weights, xerr=errors, color=colours, height=0.7, ecolor=INK)
    axes.set_yticks(places, [shortened(name) for name in names])
    axes.axvline(0, color=INK, lw=0.8)
    if limits[0] < limits[1]:
        axes.set_xlim(*limits)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def layer_map(
    values: NDArray[Any],
    layers: Sequence[str],
    columns: Sequence[str],
    *,
    output: str = "output",
    axes: Axes | None = None,
) -> Figure:
    """Draw the mean absolute attribution of each layer (rows) for each group of targets (columns).

    Parameters
    ----------
    values : float [L, C]
    layers : sequence of L str
    columns : sequence of C str
    output : str
        What the attributions are changes of.
    """
    rows = [shortened(layer) for layer in layers]
    names = [shortened(str(column), LONGEST_CLASS) for column in columns]
    wide = len(columns) > 1 and max(map(len, names)) > LETTERS_A_COLUMN
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if wide else {}
    below = INCHES_A_LETTER * max(map(len, names), default=0) if wide else 0.0
    beside = INCHES_A_LETTER * max(map(len, rows), default=0)
    size = min(1.8 + beside + 0.45 * len(columns), 10), min(1.2 + below + 0.22 * len(rows), 14)
    with drawn_on(axes, size) as (figure, panel):
        mesh = panel.pcolormesh(np.asarray(values, float), cmap="cividis", vmin=0)
        step = max(1, len(rows) // 60)
        panel.set_yticks(np.arange(0.5, len(rows), step), rows[::step])
        panel.set_xticks(np.arange(0.5, len(names)), names, **slanted)
        panel.tick_params(length=0)
        panel.invert_yaxis()
        panel.set_xlabel("class of the examples" if len(columns) > 1 else "")
        figure.colorbar(mesh, ax=panel, label=fill(f"mean |change| of the {output}", LABEL))
        return figure


def nearest_examples(
    images: NDArray[Any],
    queries: Sequence[int],
    neighbours: NDArray[Any],
    cosines: NDArray[Any],
    *,
    axes: Any = None,
) -> Figure:
    """Draw examples (left) and those whose attributions are most alike.

    Parameters
    ----------
    images : array [T, H, W] or [T, H, W, 3]
    queries : sequence of Q int
    neighbours : int [Q, K]
    cosines : float [Q, K]
    axes : matplotlib.axes.Axes [Q, K + 1], optional
        Where to draw; by default a new figure.
    """
    lines, width = len(queries), neighbours.shape[1] + 1
    with panels_on(axes, lines, width, (1.1 * width, 1.3 * lines)) as (figure, grid):
        for line, query in enumerate(queries):
            draw_image(grid[line][0], images[query], f"{query}")
            for at, (other, cosine) in enumerate(zip(neighbours[line], cosines[line], strict=True)):
                draw_image(grid[line][at + 1], images[other], f"{other}: {cosine:.2f}")
        return figure


def contribution_over_steps(
    steps: NDArray[Any],
    contributions: Mapping[str, NDArray[Any]],
    *,
    output: str = "output",
    axes: Axes | None = None,
) -> Figure:
    """Draw how a prediction builds up over training steps.

    Parameters
    ----------
    steps : int [S]
        First update of each entry.
    contributions : mapping of name to float [S]
        What the updates added to an output; drawn as running sums.
    output : str
        What was explained, with its unit.
    """
    with drawn_on(axes, (7, 3.2)) as (figure, panel):
        for at, (name, values) in enumerate(contributions.items()):
            panel.plot(steps, np.cumsum(values), label=name, lw=1.3, **line_style(at))
        panel.axhline(0, color=INK, lw=0.5)
        panel.set(
            xlabel="update of training", ylabel=fill(f"contribution so far to the {output}", LABEL)
        )
        panel.legend()
        return figure

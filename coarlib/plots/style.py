"""How every figure looks, in colours that colour-blind readers can tell apart.

matplotlib is imported when a figure is drawn, so that the library works without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coarlib.errors import ArgumentError, SetupError
from coarlib.files import for_file, whole_file

# Okabe & Ito (2008).
COLOURS = ("#0072B2", "#E69F00", "#999999", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
HELPS, HURTS = "#0072B2", "#D55E00"
# Perceptually even, and readable by colour-blind readers: blue to orange, dark to bright.
DIVERGING, SEQUENTIAL = "PuOr", "cividis"
LINE_STYLES = ("-", "--", ":", "-.")
DOTS_PER_INCH = 150
# All that is neither data nor paper; a shade of its own, so that the report can tell it apart
# and draw it in the reader's colour (light or dark).
INK = "#010203"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


def pyplot() -> Any:
    """Import matplotlib's pyplot.

    Raises
    ------
    SetupError
        If matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise SetupError(
            "a figure needs matplotlib; install it with: pip install matplotlib"
        ) from error
    if not os.environ.get("MPLBACKEND") and "matplotlib.pyplot" not in sys.modules:
        mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


@contextmanager
def styled() -> Iterator[Any]:
    """Give pyplot under the house style."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        yield plt


@contextmanager
def drawn_on(axes: Any, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """Give ``axes`` with their figure under the house style, or new ones of ``size`` inches."""
    with styled() as plt:
        if axes is None:
            _, axes = plt.subplots(figsize=size)
        yield axes.get_figure(), axes


@contextmanager
def panels_on(
    axes: Any, lines: int, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Give a figure with a grid [lines, columns] of axes, new or made of the given ones.

    Raises
    ------
    ArgumentError
        If too few axes are given; further ones are left alone.
    """
    with styled() as plt:
        if axes is None:
            figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, **options)
        else:
            flat, wanted = np.asarray(axes, dtype=object).ravel(), lines * columns
            if len(flat) < wanted:
                raise ArgumentError(f"this figure has {wanted} panels, but got {len(flat)} axes")
            grid = flat[:wanted].reshape(lines, columns)
            figure = flat[0].get_figure()
        yield figure, grid


def line_style(at: int) -> dict[str, str]:
    """Colour and dashes of the ``at``-th line; the two together never repeat soon."""
    return {"color": COLOURS[at % len(COLOURS)], "ls": LINE_STYLES[at % len(LINE_STYLES)]}


def save_png(figure: Any, path: str | Path) -> Path:
    """Write a figure as a PNG that appears whole, and close it."""
    path = for_file(path)
    with whole_file(path) as file:
        figure.savefig(file, dpi=DOTS_PER_INCH, format="png")
    pyplot().close(figure)
    return path

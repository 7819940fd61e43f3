"""How results show themselves: numbers in words, and in a notebook a few lines and a small picture.

Pictures are SVG that takes the notebook's text colour, so they read on light and dark pages.
Nothing here needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, isnan, log10
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

HELPS, HURTS = "#0072B2", "#D55E00"  # Okabe & Ito (2008): told apart by colour-blind readers
WIDTH, LINE, NAMES = 420, 18, 190
MAX_BINS = 24
SMALL, LARGE = 1e-6, 1e4  # numbers beyond are shown with an exponent
LONGEST_NAME = 40
METHODS = {  # what people call the methods of coarlib.baselines
    "leave_one_out": "leave-one-out",
    "gradient_parameter": "gradient × parameter",
    "internal_influence": "internal influence",
}


def number(value: float | None, digits: int = 3) -> str:
    """Show a number to so many digits after the point; a dash where there is none."""
    if value is None or isnan(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−" if any("1" <= letter <= "9" for letter in text) else "")


def plain(size: float, like: float | None = None) -> str:
    """Show an uncertainty with two digits, or with as many as ``like`` has."""
    ordinary = SMALL < size < LARGE or size == 0
    return f"{size:.{_digits(size if like is None else like)}f}" if ordinary else f"{size:.1e}"


def signed(value: float, error: float | None = None) -> str:
    """Show a number with its sign: as many digits as its error has, or three; at most five."""
    size = max(abs(value) / 10 if error is None else error, abs(value) / 1e4)
    ordinary = SMALL < size < LARGE or value == 0
    text = f"{abs(value):.{_digits(size)}f}" if ordinary else f"{abs(value):.2e}"
    return f"{'−' if value < 0 else '+'}{text}"


def effects(values: ArrayLike, errors: ArrayLike | None = None) -> list[tuple[str, str]]:
    """Show numbers that stand below each other, and their uncertainties, with as many digits.

    The largest uncertainty has two digits, or the largest number three; "" where there is none.
    """
    sizes = np.asarray(values, dtype=np.float64)
    if errors is None:
        largest = float(np.abs(sizes).max(initial=0)) / 10
        return [(signed(float(size), largest), "") for size in sizes]
    spread = np.asarray(errors, dtype=np.float64)
    largest = max(float(spread.max(initial=0)), float(np.abs(sizes).max(initial=0)) / 1e4)
    return [
        (signed(float(size), largest), plain(float(error), largest))
        for size, error in zip(sizes, spread, strict=True)
    ]


def counted(count: int, noun: str) -> str:
    """Show how many there are of what: ``1 output``, ``1,000 outputs``; ``noun`` is a plural."""
    return f"{count:,} {noun.removesuffix('s') if count == 1 else noun}"


def shortened(name: str, letters: int = LONGEST_NAME) -> str:
    """Leave out the middle of a long name: what comes first and the index at its end say most."""
    if len(name) <= letters:
        return name
    tail = (letters - 1) // 2
    return f"{name[: letters - 1 - tail]}…{name[-tail:]}"


def _digits(size: float) -> int:
    """Digits after the point that give a number of this size two."""
    return 2 if size <= 0 else max(0, 1 - floor(log10(float(f"{size:.1e}"))))


def card(text: str, picture: str = "") -> str:
    """Return HTML of some lines and the picture below them."""
    lines = f'<pre style="margin:0;background:none;border:0">{escape(text)}</pre>'
    return f'<div style="font-size:90%">{lines}{picture}</div>'


def histogram(values: ArrayLike, label: str) -> str:
    """Draw how numbers are distributed, as SVG; "" where there are fewer than two finite ones."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) < 2:
        return ""
    counts, edges = np.histogram(numbers, bins=min(MAX_BINS, max(2, len(numbers) // 2)))
    step, height = WIDTH / len(counts), 60
    tall = counts * height / counts.max()
    shapes = [
        f'<rect x="{at * step:.1f}" y="{height - high:.1f}" width="{step - 1:.1f}" '
        f'height="{high:.1f}" fill="{HELPS}"/>'
        for at, high in enumerate(tall)
    ]
    shapes += [
        _text(0, height + 14, f"{edges[0]:.2f}"),
        _text(WIDTH / 2, height + 14, label, "middle"),
        _text(WIDTH, height + 14, f"{edges[-1]:.2f}", "end"),
    ]
    return _svg(shapes, height + 20, f"{label}, from {edges[0]:.2f} to {edges[-1]:.2f}")


def bars(names: Sequence[str], values: ArrayLike, errors: ArrayLike | None = None) -> str:
    """Draw signed numbers as bars from a common zero, with ± errors as whiskers, as SVG."""
    sizes = np.asarray(values, dtype=np.float64)
    spread = np.zeros(len(sizes)) if errors is None else np.asarray(errors, dtype=np.float64)
    if not len(sizes):
        return ""
    low = min(0.0, float(np.nanmin(sizes - spread)))
    high = max(0.0, float(np.nanmax(sizes + spread)))
    scale = (WIDTH - NAMES - 10) / (high - low or 1.0)

    def place(value: float) -> float:
        return NAMES + 5 + (value - low) * scale

    shapes = []
    for at, (name, size, error) in enumerate(zip(names, sizes, spread, strict=True)):
        top, ends = at * LINE, sorted((place(0.0), place(float(size))))
        colour = HELPS if size >= 0 else HURTS
        shapes += [
            _text(NAMES, top + 13, name, "end"),
            f'<rect x="{ends[0]:.1f}" y="{top + 3}" width="{ends[1] - ends[0]:.1f}" '
            f'height="{LINE - 6}" fill="{colour}"/>',
        ]
        if error > 0:
            left, right = place(float(size - error)), place(float(size + error))
            middle = top + LINE / 2
            shapes.append(
                f'<path d="M{left:.1f} {middle}H{right:.1f}" stroke="currentColor" '
                'stroke-width="1.5"/>'
            )
    shapes.append(f'<path d="M{place(0.0):.1f} 0V{len(sizes) * LINE}" stroke="currentColor"/>')
    return _svg(shapes, len(sizes) * LINE + 2, "bars: " + ", ".join(names))


def strip(done: NDArray[np.bool_]) -> str:
    """Draw which of many rows are done, as one band of SVG."""
    if not len(done):
        return ""
    shares = [float(part.mean()) for part in np.array_split(done, min(len(done), 60))]
    step = WIDTH / len(shares)
    shapes = [
        f'<rect x="{at * step:.1f}" y="1" width="{step:.1f}" height="14" fill="{HELPS}" '
        f'fill-opacity="{share:.2f}"/>'
        for at, share in enumerate(shares)
    ]
    shapes.append(
        f'<rect x=".5" y="1" width="{WIDTH - 1}" height="14" fill="none" stroke="currentColor"/>'
    )
    return _svg(shapes, 18, f"{done.mean():.0%} of the rows are completed")


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of words in columns; all but the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        first, *rest = row
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="currentColor" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _svg(shapes: Sequence[Any], height: float, label: str) -> str:
    return (
        f'<svg width="{WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    )

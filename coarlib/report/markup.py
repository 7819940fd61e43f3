"""HTML parts of a report: sections, sentences, sortable tables, and figures as inline SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from coarlib.display import number
from coarlib.plots.style import HELPS, HURTS, INK, pyplot

__all__ = [
    "Section",
    "facts_table",
    "figure",
    "inline_svg",
    "sentence",
    "table",
]


@dataclass
class Section:
    """One section of the page.

    Attributes
    ----------
    key : str
        Its anchor.
    title : str
    parts : list of Markup
        Escaped HTML.
    label : str
        A shorter title for the list of sections.
    missing : str
        Where there is nothing to show: what, and why; the page names it at its end instead.
    """

    key: str
    title: str
    parts: list[Markup] = field(default_factory=list)
    label: str = ""
    missing: str = ""


def sentence(text: str) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>").format(text)


def table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[Any]], key: str = ""
) -> Markup:
    """Return a sortable table; the first column names the row.

    Parameters
    ----------
    caption : str
    headers : sequence of str
    rows : sequence of sequences
        Cells, shown as they are; numbers get three digits.
    key : str
        The element's id.
    """
    head = Markup("").join(
        Markup('<th scope="col"><button type="button">{}</button></th>').format(header)
        for header in headers
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(_cell(cell, at == 0) for at, cell in enumerate(row))
        )
        for row in rows
    )
    template = (
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table class="sortable"'
        "{}><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    )
    identity = Markup(' id="{}"').format(key) if key else Markup("")
    return Markup(template).format(caption, identity, caption, head, body)


def facts_table(rows: Sequence[tuple[str, str]]) -> Markup:
    """Return names and values, a line each."""
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(*row) for row in rows
    )
    return Markup('<table class="plain"><tbody>{}</tbody></table>').format(body)


def _cell(value: Any, is_name: bool) -> Markup:
    if is_name:
        return Markup('<th scope="row">{}</th>').format(value)
    if isinstance(value, float):
        return Markup('<td class="number" data-value="{}">{}</td>').format(value, number(value))
    if isinstance(value, int):
        return Markup('<td class="number" data-value="{}">{:,}</td>').format(value, value)
    return Markup("<td>{}</td>").format(value)


def figure(drawn: Any, key: str, title: str, description: str) -> Markup:
    """Return a matplotlib figure as an HTML figure, and close it.

    Parameters
    ----------
    drawn : matplotlib.figure.Figure
    key : str
        Unique in the page.
    title : str
        What it shows, in a few words.
    description : str
        What a reader should see, for the caption and for those who cannot see it.
    """
    template = (
        '<figure id="{}"><div class="drawing">{}</div>'
        "<figcaption><b>{}.</b> {}</figcaption></figure>"
    )
    return Markup(template).format(key, inline_svg(drawn, key, title), title, description)


def inline_svg(drawn: Any, key: str, title: str) -> Markup:
    """Turn a matplotlib figure into SVG that lives inside a page, and close it.

    Ids are made unique; ink takes the colour of the page's text, so that dark pages work.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    style = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key})
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts draw it
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot().close(drawn)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    seen: set[str] = set()

    def own(match: re.Match[str]) -> str:  # matplotlib defines one marker several times
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return f'id="{key}-{match[1]}"'

    text = re.sub(r"\bid=\"([^\"]+)\"", own, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    text = text.replace('href="#', f'href="#{key}-')
    text = text.replace(INK, "currentColor")
    for colour, name in ((HELPS, "helps"), (HURTS, "hurts")):  # brighter on dark pages
        text = text.replace(colour.lower(), f"var(--{name})")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit-family", text)
    text = text.replace("inherit-family", "system-ui, sans-serif")
    label = f'role="img" aria-label="{escape(title)}" class="chart" '
    return Markup(text.replace("<svg ", f"<svg {label}", 1))

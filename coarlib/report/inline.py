"""The report inside a notebook: one frame, no server, nothing written to disk."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from coarlib.ablation import ComponentTask
from coarlib.errors import ReportError
from coarlib.regression import Attributions, StoreRows, open_rows
from coarlib.report.inputs import ReportInputs
from coarlib.report.notes import FeatureNotes, Notes
from coarlib.report.page import build_report, write_page
from coarlib.report.task_notes import take_from
from coarlib.store import Store

__all__ = ["Explorer", "explore"]

HEIGHT = 780  # pixels


class Explorer:
    """A report that shows itself in a notebook.

    Attributes
    ----------
    page : str
        The whole HTML document.
    height : int
        Of the frame, in pixels.
    """

    def __init__(self, page: str, height: int = HEIGHT) -> None:
        self.page, self.height = page, height

    def __repr__(self) -> str:
        return f"Explorer: {len(self.page) / 1e6:.1f} MB of HTML; save(path) keeps it"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.page)}" title="Attribution report" loading="lazy" '
            f'style="width:100%;height:{self.height}px;border:1px solid #999"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file and return its path; ReportError if that is not possible."""
        return write_page(lambda: self.page, path)


def explore(
    found: Attributions,
    *,
    store: Store | str | Path | None = None,
    task: ComponentTask | None = None,
    examples: Notes | None = None,
    height: int = HEIGHT,
) -> Explorer:
    """Open the report of attributions in a notebook.

    Parameters
    ----------
    found : Attributions
    store : Store or path, optional
        The rows; by default those that the fit says it used, if they are still there.
    task : ComponentTask, optional
        What filled the store: gives images or texts, classes and names.
    examples : Notes, optional
        Images, labels and texts of the targets, in place of the task's.
    height : int
        Of the frame, in pixels.

    Returns
    -------
    Explorer

    Raises
    ------
    ReportError
        If these do not belong together.
    """
    inputs = ReportInputs(attributions=found)
    rows: Any = store if store is not None else found.summary.get("data")
    if isinstance(rows, Store):
        inputs.store, inputs.rows = rows, StoreRows(rows)
    elif rows and Path(rows).exists():
        inputs.rows = open_rows(rows)
        inputs.store = Store.open(rows) if Path(rows).is_dir() else None
    elif store is not None:
        raise ReportError(f"there is no store {store}")
    if found.components is not None:
        inputs.features = FeatureNotes.of_components(found.components)
    if task is not None:
        take_from(inputs, task)
    if examples is not None:
        inputs.examples = examples
    return Explorer(build_report(inputs), height)

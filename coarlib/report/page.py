"""The one-file HTML report: everything inline, no network, opens from disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from coarlib.errors import RegressionError, ReportError
from coarlib.files import for_file, whole_file
from coarlib.progress import Progress
from coarlib.report.attribution_sections import (
    attribution_section,
    layer_section,
    lds_section,
)
from coarlib.report.front import distribution, explained, methods_table
from coarlib.report.health import examine
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import Unseen, look_ahead, looked_at, split_of
from coarlib.report.markup import Section, sentence
from coarlib.report.methods import Method, judge
from coarlib.report.payload import explorer_data
from coarlib.report.sections import (
    health_section,
    held_out_section,
    learning_section,
    run_section,
)
from coarlib.report.strongest import nearest, strongest
from coarlib.report.training_sections import history_section, training_section
from coarlib.report.words import Verdict, fit_name, lead, title, verdict
from coarlib.scoring import noise_ceiling
from coarlib.version import __version__

__all__ = ["build_report", "learned", "methods_of", "render", "write_page", "write_report"]

HERE = Path(__file__).parent
TOP_FEATURES, NEIGHBOURS = 8, 5
STAGES = 4
OF_HISTORIES = ("training", "history")


def build_report(inputs: ReportInputs, quiet: bool = True) -> str:
    """Write the report as one HTML document.

    Parameters
    ----------
    inputs : ReportInputs
    quiet : bool
        Show no progress.

    Raises
    ------
    ReportError
        If inputs do not fit together.
    SetupError
        If matplotlib is missing.
    """
    inputs.check()
    found = inputs.attributions
    with Progress(STAGES, "report", "stage", quiet=quiet) as progress:
        health = None if inputs.rows is None else examine(inputs.rows)
        progress.advance()
        curve, why = learned(inputs)
        progress.advance()
        methods = methods_of(inputs, curve)
        features, alike = (
            (TOP_FEATURES, NEIGHBOURS) if inputs.is_small else (TOP_FEATURES // 2, NEIGHBOURS // 2)
        )
        top = None if found is None else strongest(found, features)
        similar = None if found is None else nearest(found.weight, alike)
        data = explorer_data(inputs, top, similar, health, curve)
        progress.advance()
        sections = [
            attribution_section(inputs, similar),
            held_out_section(inputs, curve, why),
            learning_section(curve, why),
            layer_section(inputs),
            lds_section(inputs, _ceiling(inputs)),
            training_section(inputs),
            history_section(inputs),
            health_section(inputs, health),
            run_section(inputs),
        ]
        front = [
            distribution(inputs, methods) + methods_table(inputs, methods),
            explained(inputs, top, health),
        ]
        progress.advance()
    if inputs.shape is None and inputs.steps is not None:  # a history alone has no rows
        sections = [part for part in sections if part.key in OF_HISTORIES]
    return render(
        heading=title(inputs),
        below=lead(inputs),
        verdict=verdict(inputs, methods, curve, 0 if health is None else health.num_complete),
        front=[part for part in front if part],
        sections=sections,
        data=data,
    )


def render(
    *,
    heading: str,
    below: str,
    verdict: Verdict,
    front: Sequence[Markup],
    sections: Sequence[Section],
    data: dict[str, Any] | None = None,
) -> str:
    """Put a page together: title, a line below it, verdict, first screen, sections, data.

    Sections that miss something are named in one sentence at the end.
    """
    shown = [section for section in sections if not section.missing]
    if missing := [section.missing for section in sections if section.missing]:
        shown[-1].parts.append(sentence(f"Not shown: {'; '.join(missing)}."))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=heading,
        lead=below,
        verdict=verdict,
        front=front,
        sections=shown,
        css=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
        data=Markup(_inert(data or {"targets": 0})),
        footer=f"Written by coarlib {__version__} on "
        f"{datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}. Everything is in this file; nothing "
        "is loaded from elsewhere.",
    )


def write_report(inputs: ReportInputs, path: str | Path, quiet: bool = True) -> Path:
    """Write the report to ``path``, whole or not at all, and return the path."""
    return write_page(lambda: build_report(inputs, quiet), path)


def write_page(build: Callable[[], str], path: str | Path) -> Path:
    """Write what ``build`` returns to ``path``, whole or not at all; ReportError if it cannot."""
    path, text = Path(path), build()  # what building cannot read is not said of the report
    try:
        with whole_file(for_file(path), "w") as file:
            file.write(text)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error
    return path


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _inert(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def learned(inputs: ReportInputs) -> tuple[Unseen | None, str]:
    """Return predictions of held-out rows with the learning curve, or why there are none."""
    if inputs.rows is None:
        return None, inputs.why_no_rows
    split = split_of(inputs.attributions, inputs.rows)
    if split is None:
        return None, (
            "There are no held-out rows to look at predictions on: the fit used every row, its "
            "rows are no longer the same, or there are too few."
        )
    try:
        chosen = looked_at(inputs.attributions, inputs.rows.num_targets)
        return look_ahead(inputs.rows, split, chosen, inputs.attributions), ""
    except (ReportError, RegressionError) as error:
        return None, str(error)[0].upper() + str(error)[1:] + "."


def methods_of(inputs: ReportInputs, curve: Unseen | None) -> list[Method]:
    """Judge the fit and the baselines; the fit first."""
    name = fit_name(inputs)
    return judge(name, inputs.attributions, inputs.baselines, curve, inputs.store)


def _ceiling(inputs: ReportInputs) -> float | None:
    """Noise ceiling of the store's outputs, where they hold several runs [R, T] of a row."""
    if inputs.store is None or not inputs.lds:
        return None
    for key, array in inputs.store.spec.schema.items():
        if array.dtype.kind == "f" and len(array.shape) == 2 and array.shape[0] > 1:
            rows = inputs.store.completed_rows()
            if len(rows) > 2:
                outputs = inputs.store.array(key)[rows].astype(np.float64)
                return noise_ceiling(outputs, splits=10).mean
    return None

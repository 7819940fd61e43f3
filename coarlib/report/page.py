"""The one-file HTML report: everything inline, no network, opens from disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from coarlib.errors import RegressionError, ReportError
from coarlib.files import whole_file
from coarlib.progress import Progress
from coarlib.report.attribution_sections import (
    attribution_section,
    history_section,
    layer_section,
    lds_section,
)
from coarlib.report.health import Health, examine
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import MOST_TARGETS, Unseen, look_ahead, split_of
from coarlib.report.markup import number
from coarlib.report.payload import explorer_data, spread_out
from coarlib.report.sections import (
    health_section,
    held_out_section,
    learning_section,
    run_section,
)
from coarlib.report.strongest import nearest, strongest
from coarlib.scoring import noise_ceiling
from coarlib.version import __version__

__all__ = ["build_report", "write_report"]

HERE = Path(__file__).parent
TOP_FEATURES = 8
STAGES = 4


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
        curve, why = _curve(inputs)
        progress.advance()
        top = None if found is None else strongest(found, TOP_FEATURES)
        similar = None if found is None else nearest(found.weight)
        data = explorer_data(inputs, top, similar, health, curve) or {"targets": 0}
        progress.advance()
        sections = [
            run_section(inputs),
            health_section(inputs, health),
            held_out_section(inputs, curve, why),
            learning_section(curve, why),
            attribution_section(inputs, similar),
            layer_section(inputs),
            lds_section(inputs, _ceiling(inputs)),
            history_section(inputs),
        ]
        progress.advance()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=inputs.title,
        lead=_lead(inputs),
        facts=_facts(inputs, health, curve),
        sections=sections,
        css=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
        data=Markup(_inert(data)),
        footer=f"Written by coarlib {__version__} on "
        f"{datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}. Everything is in this file; nothing "
        "is loaded from elsewhere.",
    )


def write_report(inputs: ReportInputs, path: str | Path, quiet: bool = True) -> Path:
    """Write the report to ``path``, whole or not at all, and return the path."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ReportError(f"there is no directory {path.parent} to write the report to")
    text = build_report(inputs, quiet)
    try:
        with whole_file(path, "w") as file:
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


def _curve(inputs: ReportInputs) -> tuple[Unseen | None, str]:
    """The learning curve, or why there is none."""
    if inputs.rows is None:
        return None, inputs.why_no_rows
    split = split_of(inputs.attributions, inputs.rows)
    if split is None:
        return None, (
            "There are no held-out rows to look at predictions on: the fit used every row, its "
            "rows are no longer the same, or there are too few."
        )
    held = None if inputs.attributions is None else inputs.attributions.held_out
    pearson = None if held is None else np.asarray(held.pearson)
    order = spread_out(pearson, inputs.rows.num_targets)
    try:
        chosen = np.sort(order[:MOST_TARGETS])
        return look_ahead(inputs.rows, split, chosen, inputs.attributions), ""
    except (ReportError, RegressionError) as error:
        return None, str(error)[0].upper() + str(error)[1:] + "."


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


def _lead(inputs: ReportInputs) -> str:
    if inputs.shape is None:
        return "An explained training history." if inputs.steps is not None else inputs.why_no_rows
    features, targets = inputs.shape
    outputs = {} if inputs.store is None else inputs.store.spec.outputs
    said = "; ".join(f"{key}: {value}" for key, value in outputs.items())
    return f"What each of {features:,} features does to {targets:,} outputs" + (
        f" ({said})." if said else "."
    )


def _facts(
    inputs: ReportInputs, health: Health | None, curve: Unseen | None
) -> list[tuple[str, str, str]]:
    """The numbers at the top: name, value, note."""
    found: list[tuple[str, str, str]] = []
    held = None if inputs.attributions is None else inputs.attributions.held_out
    if held is not None:
        note = f"95% [{number(held.mean_low)}, {number(held.mean_high)}], {held.num_rows:,} rows"
        found.append(("held-out correlation", number(held.mean), note))
    if curve is not None and curve.doubled is not None:
        note = f"from {curve.scores.mean:.3f} with {curve.num_rows:,}"
        found.append(("with twice the rows", number(curve.doubled), note))
    if health is not None:
        of = "" if inputs.store is None else f"of {inputs.store.num_models:,}"
        found.append(("completed rows", f"{health.num_complete:,}", of))
        bad = int((health.constant | health.has_nonfinite).sum())
        found.append(("suspect targets", f"{bad:,}", "never vary, or hold NaN"))
    if inputs.lds:
        best = max(inputs.lds, key=lambda record: record.summary["mean"] or -1.0)
        found.append(("best LDS", number(best.summary["mean"]), best.name))
    return found

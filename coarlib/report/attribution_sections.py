"""The sections of the report about attributions, LDS and training histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coarlib import plots
from coarlib.display import number
from coarlib.report.inputs import ReportInputs
from coarlib.report.markup import Section, figure, sentence, table
from coarlib.report.payload import spread_out
from coarlib.report.records import scoreboard_of
from coarlib.report.strongest import Nearest, layer_means
from coarlib.report.words import output_name

__all__ = ["attribution_section", "layer_section", "lds_section"]

EXPLORER = Path(__file__).with_name("explorer.html")
QUERIES = 5
MOST_LAYERS = 400


def attribution_section(inputs: ReportInputs, similar: Nearest | None) -> Section:
    """The table of examples and the view of one of them."""
    section = Section("attributions", "Attributions")
    if inputs.shape is None:
        section.parts.append(sentence("There are no attributions and no rows to list."))
        return section
    if inputs.attributions is None:
        section.parts.append(
            sentence("There are no attributions yet: fit them with coar run_regression.")
        )
    section.parts.append(Markup(EXPLORER.read_text(encoding="utf-8")))
    if similar is not None and similar.targets.shape[1]:
        among = (
            "all examples"
            if similar.candidates == len(similar.targets)
            else f"{similar.candidates:,} evenly spaced ones"
        )
        section.parts.append(
            sentence(
                "Nearest examples have the weights that point most nearly the same way, "
                f"sought among {among}."
            )
        )
        images = inputs.examples.images
        if images is not None:
            queries = spread_out(None, len(similar.targets))[:QUERIES]
            small = images[:, :: -(-images.shape[1] // 64), :: -(-images.shape[2] // 64)]
            chosen = similar.targets[queries], similar.cosines[queries]
            section.parts.append(
                figure(
                    plots.nearest_examples(small, queries.tolist(), *chosen),
                    "nearest",
                    "Nearest in attribution space",
                    "Left an example, then those that rest on the same features, with cosines.",
                )
            )
    return section


def layer_section(inputs: ReportInputs) -> Section:
    """Where in the model (or in which class of training data) the effects lie."""
    section = Section("layers", "Layer by layer", label="Layers")
    found, member = inputs.attributions, inputs.features.membership()
    if found is None:
        section.parts.append(sentence("There are no attributions yet."))
        return section
    if member is None:
        section.parts.append(
            sentence(
                "The names of the features are not known; give the components "
                "as a file, or the task."
            )
        )
        return section
    names, group = member
    classes, column = _columns(inputs, found.num_targets)
    means = layer_means(found.weight, group, column)
    counts = np.bincount(group, minlength=len(names))
    weight = means @ np.bincount(column, minlength=len(classes)) / found.num_targets
    total = max(float((weight * counts).sum()), 1e-300)
    rows = [
        (name, int(count), float(mean), f"{100 * mean * count / total:.1f}%")
        for name, count, mean in zip(names, counts, weight, strict=True)
    ][:MOST_LAYERS]
    section.parts += [
        figure(
            plots.layer_map(means, names, classes, output=output_name(inputs)),
            "layer-map",
            "Where the effects lie",
            "Mean absolute attribution of a feature of each layer (row), for each class of "
            "examples (column); bright is strong.",
        ),
        table(
            "Layers",
            ("layer", "features", "mean |attribution|", "share of all"),
            rows,
            "layers-table",
        ),
    ]
    return section


def _columns(inputs: ReportInputs, targets: int) -> tuple[list[str], NDArray[np.int64]]:
    classes = inputs.examples.classes()
    if classes is None or inputs.examples.labels is None:
        return ["all examples"], np.zeros(targets, np.int64)
    place = {label: at for at, label in enumerate(classes)}
    return classes, np.array([place[label] for label in inputs.examples.labels], np.int64)


def lds_section(inputs: ReportInputs, ceiling: float | None) -> Section:
    """The linear datamodeling score of each method that was scored."""
    section = Section("lds", "Linear datamodeling score", label="LDS")
    if not inputs.lds:
        section.missing = "LDS (no scores of coar score_lds were given or lie in the directory)"
        return section
    known = {r.name: r.correlation for r in inputs.lds if r.correlation is not None}
    if known:
        section.parts.append(
            figure(
                plots.lds_distribution(known, ceiling),
                "lds-distribution",
                "LDS over targets",
                "Share of targets whose score lies below each value; further right is better."
                + ("" if ceiling is None else " The dotted line is the noise ceiling."),
            )
        )
    board = scoreboard_of(inputs.lds)
    if board is not None:
        section.parts.append(
            figure(
                plots.scoreboard(board),
                "scoreboard",
                "Scoreboard",
                "Mean LDS of each method, measured in the same regime.",
            )
        )
    rows = []
    for record in inputs.lds:
        s = record.summary
        interval = s.get("interval") or {}
        rows.append(
            (
                record.name,
                str(s["kind"]),
                float(s["mean"]) if s["mean"] is not None else float("nan"),
                str(interval.get("text", "")).strip("()")
                or f"[{number(interval.get('low'))}, {number(interval.get('high'))}]",
                f"{100 * (s['share_p_below_05'] or 0):.1f}%",
                int(s["num_targets"]),
                int(s["num_rows"]),
            )
        )
    headers = ("method", "kind", "mean", "95% interval", "p < .05", "targets", "rows")
    section.parts.append(table("Methods", headers, rows, "lds-table"))
    return section

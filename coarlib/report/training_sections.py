"""The sections about training: the most helpful and harmful examples, the course of training."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coarlib import plots
from coarlib.display import signed
from coarlib.plots.path_figures import UNITS
from coarlib.report.inputs import ReportInputs
from coarlib.report.markup import Section, figure, table
from coarlib.report.payload import spread_out
from coarlib.report.records import StepContributions

__all__ = ["history_section", "training_section"]

SHOWN_POINTS, LISTED = 4, 3
SHOWN_IMAGES, NEIGHBOURS = 5, 4
LONGEST_TEXT = 60


def training_section(inputs: ReportInputs) -> Section:
    """Which training examples helped and harmed some test points most."""
    section = Section("training", "Training examples that matter", label="Training examples")
    weights = _weights(inputs)
    if weights is None:
        section.missing = "training examples (the features are no training examples)"
        return section
    notes, training = inputs.examples, inputs.features.notes
    shown = np.sort(spread_out(None, weights.shape[1])[:SHOWN_IMAGES])
    if notes.images is not None and training.images is not None:
        drawn = plots.helpful_and_harmful(
            notes.images[shown],
            training.images,
            np.asarray(weights[:, shown].T, np.float64),
            titles=None if notes.labels is None else [notes.labels[at] for at in shown],
            training_titles=training.labels,
            count=NEIGHBOURS,
        )
        section.parts.append(
            figure(
                drawn,
                "helpful-harmful",
                "Most helpful and most harmful",
                f"Left a test image, then the {NEIGHBOURS} training images that raise its "
                f"{_output(inputs)} most and the {NEIGHBOURS} that lower it most, with how much.",
            )
        )
        return section
    rows = [(_said(inputs, int(at)), *_listed(inputs, weights[:, at])) for at in shown]
    headers = ("test point", "raise it most", "lower it most")
    section.parts.append(table(f"Effects on the {_output(inputs)}", headers, rows, "helpful"))
    return section


def _weights(inputs: ReportInputs) -> NDArray[np.float64] | None:
    """What training examples [D] give test points [N], float64 [D, N]."""
    if inputs.steps is not None and inputs.steps.by_sample is not None:
        return np.asarray(inputs.steps.by_sample.T)
    if inputs.attributions is not None and inputs.features.noun == "training examples":
        return np.asarray(inputs.attributions.weight)
    return None


def _output(inputs: ReportInputs) -> str:
    if inputs.steps is None:
        return "output"
    return UNITS.get(inputs.steps.output, inputs.steps.output)


def _said(inputs: ReportInputs, at: int) -> str:
    label = "" if inputs.examples.labels is None else f" ({inputs.examples.labels[at]})"
    text = "" if inputs.examples.texts is None else f": {_short(inputs.examples.texts[at])}"
    return f"{at}{label}{text}"


def _listed(inputs: ReportInputs, weights: NDArray[np.float64]) -> tuple[Markup, Markup]:
    """Name the examples with the largest and the smallest effect."""
    order = np.argsort(-weights, kind="stable")
    ends = order[:LISTED], order[::-1][:LISTED]
    return tuple(  # type: ignore[return-value]
        Markup("<br>").join(_trained(inputs, int(at), float(weights[at])) for at in end)
        for end in ends
    )


def _trained(inputs: ReportInputs, at: int, weight: float) -> str:
    notes = inputs.features.notes
    text = "" if notes.texts is None else f" {_short(notes.texts[at])}"
    label = "" if notes.labels is None else f" ({notes.labels[at]})"
    return f"{signed(weight)}  {at}{label}{text}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def history_section(inputs: ReportInputs) -> Section:
    """What ranges of training steps contributed."""
    section = Section("history", "Contribution over training steps", label="Steps")
    steps = inputs.steps
    if steps is None:
        section.missing = "steps (no explained training history was given)"
        return section
    if steps.by_source:
        section.parts += _curves(steps)
    if steps.checks:
        rows = [(name.replace("_", " "), f"{value:.3g}") for name, value in steps.checks.items()]
        section.parts.append(table("Largest residuals", ("what", "largest"), rows))
    return section


def _curves(steps: StepContributions) -> list[Markup]:
    output, points = UNITS.get(steps.output, steps.output), steps.num_points
    means = {name.replace("_", " "): v.mean(0) for name, v in steps.by_source.items() if v.any()}
    some = np.sort(spread_out(None, points)[:SHOWN_POINTS])
    return [
        figure(
            plots.contribution_over_steps(steps.steps, means, output=output),
            "steps-by-source",
            "What moved the outputs",
            f"Running sums of each part's contribution, mean over {points:,} test points.",
        ),
        figure(
            plots.contribution_over_steps(
                steps.steps,
                {f"test point {at}": sum(v[at] for v in steps.by_source.values()) for at in some},
                output=output,
            ),
            "steps-by-point",
            "Some test points",
            "Running sums of all parts together.",
        ),
    ]

"""What a report says in words: its title, its verdict, the names of what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coarlib.display import counted, number
from coarlib.plots.path_figures import UNITS
from coarlib.regression import HeldOut
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import Unseen
from coarlib.report.methods import Method
from coarlib.report.records import LDSRecord, StepContributions

__all__ = ["Verdict", "examples_noun", "features_noun", "fit_name", "lead", "output_name", "title"]

LONGEST_OUTPUT = 40
CERTAIN = 0.15  # an additive share is only said if its 95% interval is no wider, either way
NAMED_BASELINES = 3


@dataclass(frozen=True)
class Verdict:
    """One sentence on whether the attributions predict, and what that rests on.

    ``tone`` is ``"good"``, ``"none"`` (nothing can be concluded) or ``"unknown"`` (not tested).
    """

    text: str
    tone: str


def features_noun(inputs: ReportInputs) -> str:
    """Name the features: convolution filters, attention heads, training examples …"""
    return inputs.features.noun


def examples_noun(inputs: ReportInputs) -> str:
    """Name the targets: images, texts or outputs."""
    notes = inputs.examples
    if notes.images is not None:
        return "images"
    if notes.texts is not None:
        return "texts"
    return "examples" if notes.labels is not None else "outputs"


def held_out_unit(inputs: ReportInputs) -> str:
    """Return what judged the fit: rows, or trials."""
    held = None if inputs.attributions is None else inputs.attributions.held_out
    return "rows" if held is None else held.unit


def output_name(inputs: ReportInputs) -> str:
    """Name what was measured, such as "margin to the best other class"; "output" if not known."""
    if inputs.store is None or not inputs.store.spec.outputs:
        return "output"
    outputs = inputs.store.spec.outputs
    key = inputs.output_key if inputs.output_key in outputs else next(iter(outputs))
    said = outputs[key].split(" of the ")[0].split(";")[0].strip()
    return said if 0 < len(said) <= LONGEST_OUTPUT else key.replace("_", " ")


def fit_name(inputs: ReportInputs) -> str:
    """Call the fit COAR where it attributes to a model's components."""
    return "COAR" if inputs.features.groups else "this fit"


def title(inputs: ReportInputs) -> str:
    """Return the title: model, features and examples in words."""
    if inputs.title:
        return inputs.title
    if inputs.shape is None:
        if inputs.steps is None:
            return "Nothing to report yet"
        points = counted(inputs.steps.num_points, examples_noun(inputs))
        return f"What training{f' {inputs.model}' if inputs.model else ''} did to {points}"
    features, targets = inputs.shape
    of = f" of {inputs.model}" if inputs.model else ""
    count = counted(features, features_noun(inputs))
    do = "does" if features == 1 else "do"
    return f"What {count}{of} {do} to {counted(targets, examples_noun(inputs))}"


def lead(inputs: ReportInputs) -> str:
    """Return the line under the title: what was measured."""
    store = inputs.store
    if inputs.attributions is None and inputs.steps is not None:
        return f"Explained: {UNITS.get(inputs.steps.output, inputs.steps.output)}."
    if store is None or not store.spec.outputs:
        return ""
    return "Measured: " + "; ".join(f"{text}" for text in store.spec.outputs.values()) + "."


def masked(inputs: ReportInputs) -> str:
    """Name counterfactual runs: ablations of components, or subsets of examples."""
    noun = features_noun(inputs)
    if inputs.features.groups:
        return f"ablations of these {inputs.features.count or ''} {noun}".replace("  ", " ")
    return "subsets of the training data" if noun == "training examples" else "masked runs"


def verdict(
    inputs: ReportInputs, methods: Sequence[Method], curve: Unseen | None, complete: int
) -> Verdict:
    """Judge the attributions in one sentence, with intervals and baselines."""
    found = inputs.attributions
    if found is None:
        if inputs.steps is not None:
            return _of_history(inputs.steps)
        said = f"{complete:,} rows are measured, but nothing was fitted to them yet."
        return Verdict(said if complete else inputs.why_no_rows, "unknown")
    held = found.held_out
    if held is None and inputs.lds:
        return _of_lds(inputs.lds)
    if held is None and "method" in found.summary:
        return Verdict(
            f"Not tested: these are {found.summary['method']} scores; whether they predict "
            "retraining is what LDS says (coar score_lds).",
            "unknown",
        )
    if held is None:
        return Verdict(
            f"Not tested: {fit_name(inputs)} held no rows out, so nothing says how well these "
            "attributions predict.",
            "unknown",
        )
    text, tone = _of_scores(inputs, held, methods)
    if tone == "good":
        text = " ".join([text, *_of_more_rows(inputs, curve)])
    return Verdict(text, tone)


def _of_lds(records: Sequence[LDSRecord]) -> Verdict:
    """Judge by the linear datamodeling score, the best method first."""
    ordered = sorted(records, key=lambda record: -(record.summary["mean"] or -2.0))
    said, best = [], ordered[0]
    for record in ordered[:NAMED_BASELINES]:
        ends = record.summary.get("interval") or {}
        low, high = ends.get("low"), ends.get("high")
        said.append(
            f"{record.name} {number(record.summary['mean'])} [{number(low)}, {number(high)}]"
        )
    ends = best.summary.get("interval") or {}
    if ends.get("low") is None or ends["low"] <= 0:
        return Verdict(f"Nothing can be concluded: LDS {'; '.join(said)}.", "none")
    ceiling = best.summary.get("noise_ceiling")
    of = "" if ceiling is None else f" A perfect method would reach {number(ceiling)}."
    return Verdict(f"Retrained models are predicted with LDS {'; '.join(said)}.{of}", "good")


def _of_scores(inputs: ReportInputs, held: HeldOut, methods: Sequence[Method]) -> tuple[str, str]:
    """Say in a sentence what held-out rows say, and in a word whether it is good."""
    us, others = methods[0], methods[1 : 1 + NAMED_BASELINES]
    score = f"correlation {number(us.mean)} {us.interval}"
    if not np.isfinite([held.mean_low, held.mean_high]).all():
        text = f"Too little to judge by: {held.num_rows:,} held-out {held.unit} give {score}"
        return f"{text}; at least 20 are needed.", "unknown"
    if held.predicts_nothing:
        why = "the interval contains zero" if held.mean_low <= 0 else "no prediction varies"
        text = (
            f"Nothing can be concluded: predictions of {held.num_rows:,} unseen {masked(inputs)} "
            f"have {score}, and {why}. More rows are needed, or larger ablations."
        )
        return text, "none"
    if held.mean_high < 0:
        text = f"Something is wrong: predictions of unseen {masked(inputs)} point the wrong way"
        return f"{text}, {score}.", "none"
    name = fit_name(inputs)
    text = f"{name[0].upper()}{name[1:]} predicts unseen {masked(inputs)} with {score}"
    compared = "".join(f"; {other.name} {number(other.mean)} {other.interval}" for other in others)
    return f"{text}{compared}.", "good"


def _of_more_rows(inputs: ReportInputs, curve: Unseen | None) -> list[str]:
    """Say what is left to explain: by more rows, and by no additive explanation."""
    said = []
    share = None if curve is None else curve.not_additive
    if share is not None:
        noise = "" if inputs.features.groups else ", or noise of training"
        said.append(f"About {share:.0%} of the outputs' variance is not additive{noise}.")
    return said


def _of_history(steps: StepContributions) -> Verdict:
    if not steps.verdict:
        return Verdict("Whether the parts add up was not recorded.", "unknown")
    text = f"{steps.verdict[0].upper()}{steps.verdict[1:]}."
    return Verdict(text, "good" if steps.sound else "none")

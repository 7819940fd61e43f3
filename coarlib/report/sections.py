"""The sections of the report about rows and fit; a section without data is one sentence."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coarlib import plots
from coarlib.display import counted, number
from coarlib.regression import Attributions
from coarlib.report.health import Health
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import Unseen
from coarlib.report.markup import Section, facts_table, figure, sentence, table
from coarlib.report.methods import cost_of_fit
from coarlib.report.payload import spread_out
from coarlib.report.provenance import duration, read_run, short_json, when
from coarlib.report.words import output_name
from coarlib.store import Store
from coarlib.store.authors import rows_by_identity
from coarlib.store.identity import all_identities

__all__ = ["health_section", "held_out_section", "learning_section", "run_section"]

PANELS = 6
NAMED = 20


def run_section(inputs: ReportInputs) -> Section:
    """What was run: spec, task, rows, seeds, versions, cost."""
    section = Section("run", "How it was made", label="How it was made")
    facts: list[tuple[str, str]] = []
    store, found = inputs.store, inputs.attributions
    if store is not None:
        complete = len(store.completed_rows())
        record = read_run(store)
        facts.append(("store", store.describe()))
        facts.append(("rows completed", f"{complete:,} of {store.num_models:,}"))
        design = store.design
        if design is not None:
            facts.append(("mask design", f"{design.kind}, seed {design.seed}"))
        facts.append(("task", ", ".join(record.tasks) or "not recorded"))
        facts += _tasks(store)
        facts.append(("versions", "; ".join(sorted(record.versions)) or "not recorded"))
        if record.rows:
            rate = record.rows / max(record.seconds, 1e-9)
            spent = f"{duration(record.seconds)} of {counted(record.workers, 'workers')}"
            span = f"{when(record.first)} to {when(record.last)}"
            facts.append(("cost", f"{spent}, {rate:.3g} rows a second each, {span}"))
        if store.spec.notes:
            facts.append(("notes", store.spec.notes))
    elif inputs.rows is not None:
        facts.append(("rows", f"{len(inputs.rows.row_ids):,} in {inputs.rows.description}"))
    if found is not None:
        unit = "a training" if inputs.features.noun == "training examples" else "a forward pass"
        facts += _fit_facts(found, store, unit)
    if not facts:
        section.parts.append(sentence(inputs.why_no_rows))
        return section
    section.parts.append(facts_table(facts))
    if store is not None:
        section.parts.append(_details("The spec", short_json(store.spec.as_json())))
        tasks = read_run(store).tasks
        if tasks:
            section.parts.append(_details("The task as recorded", short_json(tasks)))
    if found is not None and found.summary:
        section.parts.append(_details("The fit's summary", short_json(found.summary)))
    return section


def _fit_facts(found: Attributions, store: Store | None, unit: str) -> list[tuple[str, str]]:
    """Say how the attributions were fitted, on what, and what that took."""
    s = found.summary
    facts = [
        ("fit", str(s.get("status", s.get("solver", "not recorded")))),
        ("weights", f"{found.num_features:,} features × {found.num_targets:,} targets"),
    ]
    if "num_rows" in s:
        fitted, scoring = s["num_rows"], s.get("rows_for_validation_fit") or s["num_rows"]
        text = (
            f"{fitted:,} (scored by a fit on {scoring:,}, {s.get('rows_held_out') or 0:,} held "
            f"out; {s.get('num_excluded') or 0:,} left out as not finite)"
        )
        cost = cost_of_fit(found, store)
        facts += [("rows of the fit", text), ("cost of the fit", f"{cost} (a row is {unit})")]
    if s.get("largest_gap") is not None:
        gap = float(s["largest_gap"])
        facts.append(("certificate", f"at most {gap:.2g} from the optimum (relative)"))
    return facts


def _tasks(store: Store) -> list[tuple[str, str]]:
    """Say which tasks made the rows, if several did."""
    if len(all_identities(store.path)) < 2:
        return []
    made = rows_by_identity(store).items()
    return [("different tasks", "; ".join(f"{name}: {len(rows)} rows" for name, rows in made))]


def _details(title: str, text: str) -> Markup:
    return Markup('<details><summary>{}</summary><pre tabindex="0">{}</pre></details>').format(
        title, text
    )


def health_section(inputs: ReportInputs, health: Health | None) -> Section:
    """Are the rows complete, the masks balanced, the outputs alive?"""
    section = Section("health", "Data health")
    if health is None:
        section.parts.append(sentence(inputs.why_no_rows))
        return section
    store = inputs.store
    rows: list[tuple[str, object]] = [("completed rows", health.num_complete)]
    if store is not None:
        rows.append(("rows of the store", store.num_models))
        if health.num_complete < store.num_models:
            missing = store.num_models - health.num_complete
            section.parts.append(
                sentence(
                    f"{missing:,} of {store.num_models:,} rows are not completed; everything here "
                    "rests on the completed ones."
                )
            )
    rows += [
        ("rows looked at", health.num_sampled),
        ("targets that never vary", int(health.constant.sum())),
        ("targets with NaN or infinity", int(health.has_nonfinite.sum())),
        ("features kept in every row or in none", _never_vary(health.kept_share)),
    ]
    section.parts.append(table("Counts", ("what", "number"), rows))
    for what, flags in (
        ("never vary", health.constant),
        ("hold NaN or infinity", health.has_nonfinite),
    ):
        if flags.any():
            named = ", ".join(map(str, np.flatnonzero(flags)[:NAMED]))
            more = ", …" if flags.sum() > NAMED else ""
            section.parts.append(sentence(f"Targets that {what}: {named}{more}."))
    design = None if store is None else store.design
    expected = None if design is None else design.keep_prob
    section.parts.append(
        figure(
            plots.mask_balance(health.kept_share, expected),
            "mask-balance",
            "Mask balance",
            "How often each feature is kept; a narrow peak at the design's probability is right.",
        )
    )
    share = health.share_positive
    section.parts.append(
        figure(
            plots.outputs_under_masks(share, "share of positive outputs in a row"),
            "outputs-under-masks",
            "Outputs under masks",
            f"Share of positive outputs of each row, {share.mean():.1%} on average; for margins "
            "this is the accuracy of the ablated or retrained model.",
        )
    )
    return section


def _never_vary(kept_share: NDArray[np.float64]) -> int:
    return int(((kept_share == 0) | (kept_share == 1)).sum())


def held_out_section(inputs: ReportInputs, curve: Unseen | None, why: str) -> Section:
    """How well predictions agree with rows that no fit has seen."""
    section = Section("held-out", "Held-out correlation", label="Held-out")
    held = None if inputs.attributions is None else inputs.attributions.held_out
    if held is None:
        section.parts.append(
            sentence(
                "There are no attributions yet."
                if inputs.attributions is None
                else "The fit has no held-out rows, so it has no scores; fit again with "
                "num_val above 0."
            )
        )
    else:
        section.parts.append(sentence(str(held)[0].upper() + str(held)[1:] + "."))
        section.parts.append(
            figure(
                plots.ranked_correlations(held.pearson, held.low, held.high),
                "ranked-correlations",
                "Every target's correlation",
                "Targets in ascending order, with 95% intervals over rows.",
            )
        )
    if inputs.evaluation is not None:
        e, trained_at = inputs.evaluation, inputs.evaluation.trained_at
        if trained_at is None and inputs.attributions is not None:
            ablated = 1 - float(np.mean(inputs.attributions.mean_mask))
            trained_at = None if np.isnan(ablated) else ablated
        drawn = plots.correlation_against_fraction(
            e.fractions, e.means, e.intervals, trained_at=trained_at
        )
        section.parts.append(
            figure(
                drawn,
                "against-fraction",
                "Correlation against the ablated fraction",
                "Each method predicts random ablations of several fractions.",
            )
        )
        if e.passes:
            section.parts.append(
                table(
                    "What each method cost",
                    ("method", "forward passes over the examples"),
                    list(e.passes.items()),
                    "passes",
                )
            )
    if curve is None:
        section.parts.append(sentence(why))
    else:
        section.parts += _scatter_parts(inputs, curve)
    return section


def _scatter_parts(inputs: ReportInputs, curve: Unseen) -> list[Markup]:
    scores = curve.scores.pearson
    chosen = np.sort(spread_out(scores, len(curve.targets))[:PANELS])
    chosen = chosen[np.argsort(scores[chosen], kind="stable")]
    titles = [
        f"{_example(inputs, int(curve.targets[at]))}: r = {number(scores[at], 2)}" for at in chosen
    ]
    drawn = plots.predicted_against_true(
        curve.predicted[:, chosen], curve.true[:, chosen], titles, output=output_name(inputs)
    )
    return [
        figure(
            drawn,
            "predicted-against-true",
            "Predicted against measured",
            f"Worst, best and between, on held-out rows; {curve.curve.solver.replace('_', ' ')} on "
            f"{curve.num_rows:,} rows. The line is equality.",
        ),
        Markup(
            '<p class="tools"><label for="scatter-target">Look at one example</label>'
            '<select id="scatter-target"></select></p><div id="scatter"></div>'
        ),
    ]


def _example(inputs: ReportInputs, target: int) -> str:
    labels = inputs.examples.labels
    return f"example {target}" if labels is None else f"{labels[target]} ({target})"


def learning_section(curve: Unseen | None, why: str) -> Section:
    """How much more rows would help."""
    section = Section("learning", "Learning curve")
    if curve is None:
        section.parts.append(sentence(why))
        return section
    found = curve.curve
    ahead = None if curve.doubled is None else (float(found.wanted[0]), curve.doubled)
    said = f"{str(found)[0].upper()}{str(found)[1:]}."
    section.parts += [
        sentence(said),
        figure(
            plots.learning_curve(found.rows, found.correlation, found.low, found.high, ahead),
            "learning-curve",
            "Held-out correlation against rows",
            f"{found.solver.replace('_', ' ').capitalize()} on growing numbers of rows, mean over "
            f"{len(curve.targets):,} targets with 95% interval; the open circle extrapolates.",
        ),
    ]
    return section

"""The first screen: does it work, how well, and what decides some examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coarlib import plots
from coarlib.display import METHODS, counted, effects, number, shortened, signed
from coarlib.plots.style import styled
from coarlib.report.health import Health
from coarlib.report.inputs import ReportInputs
from coarlib.report.markup import figure, sentence, table
from coarlib.report.methods import Method
from coarlib.report.payload import picture_uri
from coarlib.report.strongest import Strongest
from coarlib.report.words import examples_noun, held_out_unit, output_name

__all__ = ["distribution", "explained", "methods_table"]

SHOWN, RAISING, LOWERING = 3, 3, 2
LONGEST_TEXT, LONGEST_NAME, LONGEST_LABEL = 90, 26, 24
Z_95 = 1.96
WIDTH = 4.9  # inches
PLACES = ("highest", "median", "lowest")


def distribution(inputs: ReportInputs, methods: Sequence[Method]) -> Markup:
    """Draw every method's correlations against those of the others."""
    if not methods:
        return Markup("")
    noun, what = examples_noun(inputs), held_out_unit(inputs)
    with styled() as plt:  # narrow, so that its words can be read on a phone
        drawn, axes = plt.subplots(figsize=(WIDTH, 0.75 + 0.5 * len(methods)))
    plots.method_distributions(
        {method.name: method.pearson for method in methods},
        {method.name: (method.low, method.high) for method in methods},
        of_what=f"held-out {what}",
        axes=axes,
    )
    axes.set_xlabel(f"correlation over held-out {what}")
    return figure(
        drawn,
        "correlations",
        f"How well {noun} are predicted",
        f"Shapes: the {counted(len(methods[0].pearson), noun)}. Marks and numbers: means; bars: "
        f"95% intervals over {what}.",
    )


def methods_table(inputs: ReportInputs, methods: Sequence[Method]) -> Markup:
    """Tabulate means, intervals and costs."""
    rows = [(m.name, f"{number(m.mean)} {m.interval}", m.cost or "not known") for m in methods]
    others = _evaluated(inputs, {method.name for method in methods})
    rows += others
    trained = inputs.features.noun == "training examples"
    unit = "one training" if trained else "one forward pass over the examples"
    headers = ("method", "mean correlation", "cost")
    what = held_out_unit(inputs)
    caption = f"Methods on the same held-out {what}, 95% intervals over {what}."
    caption += f" A row costs {unit}."
    if others:
        caption += " ¹ by coar evaluate, on fresh ablations."
    return table(caption, headers, rows, "methods") if rows else Markup("")


def _evaluated(inputs: ReportInputs, known: set[str]) -> list[tuple[str, str, str]]:
    """Return lines of methods that ``coar evaluate`` has judged, at the fraction of the fit."""
    found = inputs.evaluation
    if found is None or not known:
        return []
    at = found.trained_at
    if at is None and inputs.attributions is not None:
        at = 1 - float(np.mean(inputs.attributions.mean_mask))
    place = 0 if at is None else int(np.argmin(np.abs(np.asarray(found.fractions) - at)))
    lines = []
    for name in [name for name in found.means if name not in known]:
        low, high = found.intervals[name][place]
        said = f"{number(found.means[name][place])} [{number(low)}, {number(high)}]"
        cost = f"{found.passes[name]} passes" if name in found.passes else "not known"
        lines.append((f"{METHODS.get(name, name)}¹", said, cost))
    return lines


def explained(inputs: ReportInputs, top: Strongest | None, health: Health | None) -> Markup:
    """Explain three examples: what raises and lowers their outputs, with images or texts."""
    found = inputs.attributions
    if top is None or found is None:
        return Markup("")
    shown = _examples(inputs, health, found.num_targets)
    cards = [_card(inputs, top, target, place) for target, place in shown]
    held = found.held_out
    doubt = "Not to be relied on, see above. " if held is not None and held.predicts_nothing else ""
    note = sentence(
        f"{doubt}Numbers: how much the {output_name(inputs)} changes when a feature is kept, "
        + ("± its 95% interval." if top.errors is not None else "without errors: none are known.")
        + " Blue raises it, orange lowers it."
    )
    return Markup('<div class="cards">{}{}</div>').format(Markup("").join(cards), note)


def _examples(inputs: ReportInputs, health: Health | None, targets: int) -> list[tuple[int, str]]:
    """Choose the examples with the highest, the median and the lowest mean output."""
    if health is None:
        chosen = np.unique(np.linspace(0, targets - 1, min(SHOWN, targets)).round())
        return [(int(target), "") for target in chosen]
    usable = np.flatnonzero(~health.constant & ~health.has_nonfinite)
    if not len(usable):
        usable = np.arange(targets)
    order = usable[np.argsort(-health.mean[usable], kind="stable")]
    at = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    places = PLACES if len(at) == SHOWN else ("",) * len(at)
    return [
        (
            int(order[a]),
            f"{place} mean {output_name(inputs)}, {signed(float(health.mean[order[a]]), 0.1)}",
        )
        for a, place in zip(at, places, strict=True)
    ]


def _card(inputs: ReportInputs, top: Strongest, target: int, place: str) -> Markup:
    notes, held = inputs.examples, None
    if inputs.attributions is not None:
        held = inputs.attributions.held_out
    label = "" if notes.labels is None else f"{shortened(notes.labels[target], LONGEST_LABEL)} · "
    said = [place] if place else []
    if held is not None:
        said.append(f"r = {number(float(held.pearson[target]), 2)}")
    picture = Markup("")
    if notes.images is not None:
        uri = picture_uri(notes.images[target])
        picture = Markup('<img class="main" src="{}" alt="example {}">').format(uri, target)
    words = Markup("")
    if notes.texts is not None:
        text = notes.texts[target]
        text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        words = Markup("<blockquote>{}</blockquote>").format(text)
    return Markup(
        '<article class="card"><h3>{}example {}</h3><p class="note">{}</p>{}'
        '<div class="what">{}<div class="bars">{}</div></div></article>'
    ).format(label, target, "; ".join(said), words, picture, _bars(inputs, top, target))


def _bars(inputs: ReportInputs, top: Strongest, target: int) -> Markup:
    """Draw the features that raise the output most, then those that lower it most."""
    features, weights = top.features[target], top.weights[target]
    half = len(features) // 2
    order = np.array([*range(min(RAISING, half)), *range(half, half + min(LOWERING, half))])
    order = order[features[order] >= 0]
    errors = None if top.errors is None else Z_95 * top.errors[target][order]
    ends = np.abs(weights[order]) + (0 if errors is None else np.nan_to_num(errors))
    largest = float(ends.max(initial=0)) or 1.0  # bars and their intervals are whole
    said = effects(weights[order], errors)
    parts = [
        _bar(
            _name(inputs, int(features[at])),
            float(weights[at]),
            None if errors is None or np.isnan(errors[place]) else float(errors[place]),
            " ± ".join(part for part in said[place] if part),
            largest,
        )
        for place, at in enumerate(order)
    ]
    return Markup("").join(parts) if parts else sentence("No feature has an effect.")


def _bar(name: Markup, weight: float, error: float | None, said: str, largest: float) -> Markup:
    share = 98 * abs(weight) / largest
    spread = Markup("")
    if error is not None:
        reach = 98 * error / largest
        left = max(0.0, share - reach)
        spread = Markup('<div class="error" style="left:{:.1f}%;width:{:.1f}%"></div>').format(
            left, share + reach - left
        )
    kind = "helps" if weight > 0 else "hurts"
    return Markup(
        '<span>{}</span><div class="track" aria-hidden="true"><div class="fill {}" '
        'style="width:{:.1f}%"></div>{}</div><span class="number">{}</span>'
    ).format(name, kind, share, spread, said)


def _name(inputs: ReportInputs, feature: int) -> Markup:
    name = inputs.features.name(feature).replace(".weight", "")
    images: NDArray[Any] | None = inputs.features.notes.images
    if images is None:
        return Markup('<span title="{}">{}</span>').format(name, shortened(name, LONGEST_NAME))
    uri = picture_uri(images[feature])
    return Markup('<img src="{}" alt=""> {}').format(uri, name.removeprefix("example "))

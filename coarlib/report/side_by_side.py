"""Two or more results beside each other: verdicts, scores, costs, and how far weights agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coarlib import plots
from coarlib.display import number
from coarlib.errors import ReportError
from coarlib.plots.style import styled
from coarlib.report.front import WIDTH
from coarlib.report.health import examine
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import Unseen
from coarlib.report.markup import Section, figure, sentence, table
from coarlib.report.methods import Method
from coarlib.report.page import learned, methods_of, render
from coarlib.report.strongest import layer_means
from coarlib.report.words import Verdict, title, verdict

__all__ = ["build_comparison"]

MOST_LAYERS = 60
SHOWN_TARGETS = 4096


def build_comparison(runs: Sequence[ReportInputs]) -> str:
    """Write a page that shows several results beside each other.

    Parameters
    ----------
    runs : sequence of ReportInputs
        Each with attributions; ``place`` is its name.

    Raises
    ------
    ReportError
        If there are fewer than two, or one has no attributions.
    """
    if len(runs) < 2:
        raise ReportError(f"a comparison takes at least two results, not {len(runs)}")
    for run in runs:
        run.check()
        if run.attributions is None:
            raise ReportError(f"{run.place} holds no attributions to compare")
    names = _names(runs)
    seen = [learned(run)[0] for run in runs]
    methods = [methods_of(run, curve) for run, curve in zip(runs, seen, strict=True)]
    said = [_verdict(run, m, c) for run, m, c in zip(runs, methods, seen, strict=True)]
    lines = [f"{name}: {one.text}" for name, one in zip(names, said, strict=True)]
    lines += _better(names, methods, said)
    tones = {one.tone for one in said}
    sections = [_scores(runs, names, methods), _weights(runs, names), _layers(runs, names)]
    return render(
        heading=" beside ".join(names),
        below="; ".join(dict.fromkeys(title(run) for run in runs)),
        verdict=Verdict(Markup("<br>").join(lines), tones.pop() if len(tones) == 1 else "unknown"),
        front=[_front(names, methods)],
        sections=[section for section in sections if section.parts],
    )


def _names(runs: Sequence[ReportInputs]) -> list[str]:
    """Name each run by its directory, with a number where two have the same name."""
    names = [run.place or "result" for run in runs]
    twice = len(set(names)) < len(names)
    return [f"{name} ({at + 1})" if twice else name for at, name in enumerate(names)]


def _verdict(run: ReportInputs, methods: Sequence[Method], curve: Unseen | None) -> Verdict:
    health = None if run.rows is None else examine(run.rows)
    return verdict(run, methods, curve, 0 if health is None else health.num_complete)


def _better(
    names: Sequence[str], methods: Sequence[Sequence[Method]], said: Sequence[Verdict]
) -> list[str]:
    """Say which of the results that predict at all predicts best, as far as intervals can tell."""
    every = zip(names, methods, said, strict=True)
    sound = [(found[0], name) for name, found, one in every if found and one.tone == "good"]
    if len(sound) < 2:
        return []
    (first, best), (second, next_best) = sorted(sound, key=lambda one: -one[0].mean)[:2]
    if first.low > second.high:
        return [f"{best} predicts best: its interval lies above the others'."]
    return [f"Whether {best} or {next_best} predicts better is not clear: their intervals overlap."]


def _front(names: Sequence[str], methods: Sequence[Sequence[Method]]) -> Markup:
    first = {name: found[0] for name, found in zip(names, methods, strict=True) if found}
    if not first:
        return sentence("None of these results was tested on what it was not fitted on.")
    with styled() as plt:
        drawn, axes = plt.subplots(figsize=(WIDTH, 0.75 + 0.5 * len(first)))
    plots.method_distributions(
        {name: method.pearson for name, method in first.items()},
        {name: (method.low, method.high) for name, method in first.items()},
        axes=axes,
    )
    axes.set_xlabel("correlation over what was held out")
    note = "Each on its own rows or trials, held out; marks: means with 95% intervals over these."
    return figure(drawn, "beside", "Held-out correlation of each result", note)


def _scores(
    runs: Sequence[ReportInputs], names: Sequence[str], methods: Sequence[Sequence[Method]]
) -> Section:
    section = Section("scores", "Side by side")
    rows = []
    for run, name, found in zip(runs, names, methods, strict=True):
        attributions = run.attributions
        if attributions is None:
            continue
        method = found[0] if found else None
        summary = attributions.summary
        rows.append(
            (
                name,
                str(summary.get("solver", "not recorded")).replace("_", " "),
                f"{attributions.num_features:,} × {attributions.num_targets:,}",
                "not tested" if method is None else f"{number(method.mean)} {method.interval}",
                str(attributions.cost) if method is None else method.cost,
            )
        )
    headers = ("result", "solver", "features × targets", "held-out correlation", "cost")
    section.parts.append(table("What was fitted, how well, at what cost", headers, rows, "beside"))
    return section


def _weights(runs: Sequence[ReportInputs], names: Sequence[str]) -> Section:
    """Compare the weights of each result with those of the first, target by target."""
    section = Section("weights", "Do they say the same?", label="Weights")
    first = runs[0].attributions
    agreement: dict[str, NDArray[np.float64]] = {}
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = run.attributions
        if first is None or other is None or first.weight.shape != other.weight.shape:
            section.parts.append(sentence(f"{name} has other features or targets than {names[0]}."))
            continue
        spaced = np.linspace(0, first.num_targets - 1, min(first.num_targets, SHOWN_TARGETS))
        shown = np.unique(spaced.round().astype(int))
        agreement[f"{names[0]} and {name}"] = _correlations(
            np.asarray(first.weight[:, shown], np.float64),
            np.asarray(other.weight[:, shown], np.float64),
        )
    if agreement:
        drawn = plots.method_distributions(agreement)
        drawn.axes[0].set_xlabel("correlation of the weights of a target")
        section.parts.append(
            figure(drawn, "agreement", "Agreement of weights", "1: the same up to scale and shift.")
        )
    return section


def _correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of each column, float64 [T]; NaN where one never varies."""
    a, b = one - one.mean(0), other - other.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))


def _layers(runs: Sequence[ReportInputs], names: Sequence[str]) -> Section:
    """Show where the effects lie, by layer, where all results name the same layers."""
    section = Section("layers", "Layer by layer", label="Layers")
    members = [run.features.membership() for run in runs]
    known = [member for member in members if member is not None]
    if len(known) < len(runs) or any(member[0] != known[0][0] for member in known):
        return section
    columns = []
    for run, (_, group) in zip(runs, known, strict=True):
        if run.attributions is None or len(group) != run.attributions.num_features:
            return section
        every = np.zeros(run.attributions.num_targets, np.int64)
        columns.append(layer_means(run.attributions.weight, group, every)[:, 0])
    layers = known[0][0][:MOST_LAYERS]
    rows = [(layer, *(float(column[at]) for column in columns)) for at, layer in enumerate(layers)]
    caption = "Mean |change| of the output when a feature of a layer is kept"
    section.parts.append(table(caption, ("layer", *names), rows, "layers-beside"))
    return section

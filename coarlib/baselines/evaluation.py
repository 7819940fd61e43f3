"""How well attributions predict fresh ablations, against the baselines (COAR's main experiment).

For each ablated fraction α, random masks that no fit has seen are evaluated; a method predicts
output t under a mask by the sum of its scores of the kept components; what counts is the
correlation over masks of predicted and true outputs, a target at a time (Shah, Ilyas, Madry 2024,
§5.1). Rows are deterministic, so the noise-free ceiling is a correlation of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.task import ComponentTask
from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.baselines.gradients import METHODS, gradient_scores
from coarlib.errors import ScoringError, nearest
from coarlib.masks import MaskDesign, draw
from coarlib.progress import Progress
from coarlib.regression.heldout import HeldOut, score_arrays
from coarlib.scoring import correlate, correlation_interval
from coarlib.statistics.intervals import difference_interval

BASELINES = ("leave_one_out", *METHODS, "random")
SHOWN: tuple[Literal["pearson", "spearman"], ...] = ("pearson", "spearman")
# Far from any seed that people give a design, so that these masks are none of the fit's.
FRESH_SEED = 7_046_029_254_386_353_131


@dataclass(frozen=True)
class Line:
    """One method at one ablated fraction.

    Attributes
    ----------
    method : str
    forward_passes : float
        What its scores cost, in forward passes over the examples; a backward pass counts as two.
    at_least : bool
        Whether that leaves out what nobody has recorded.
    fraction : float
        α, the probability that a component is ablated.
    rows : int
    pearson, pearson_low, pearson_high : float
        Mean over targets with its 95% interval over rows.
    spearman, spearman_low, spearman_high : float
    difference, difference_low, difference_high : float
        Pearson correlation less that of the first method, with the 95% interval over paired rows.
    """

    method: str
    forward_passes: float
    at_least: bool
    fraction: float
    rows: int
    pearson: float
    pearson_low: float
    pearson_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    difference: float = 0.0
    difference_low: float = 0.0
    difference_high: float = 0.0


@dataclass(frozen=True)
class Scores:
    """A method's scores [N, T] and what is known of their cost in forward passes."""

    scores: NDArray[Any]
    forward_passes: float
    at_least: bool = False


def baseline(name: str, task: ComponentTask, key: str) -> Scores:
    """Compute a baseline on a prepared task.

    Parameters
    ----------
    name : str
        One of :data:`BASELINES`.
    task : ComponentTask
    key : str
        Which of the task's outputs.

    Raises
    ------
    ScoringError
        If there is no such baseline.
    ComponentError
        If it does not apply to these components or inputs.
    """
    if name not in BASELINES:
        raise ScoringError(f"unknown baseline {name}{nearest(name, BASELINES)}")
    components = task.component_set
    if name == "leave_one_out":
        masks = np.ones((len(components) + 1, len(components)), dtype=np.bool_)
        np.fill_diagonal(masks, False)
        outputs = measure(task, masks, key, "leaving one out")
        return Scores(leave_one_out(masks, outputs), len(masks))
    if name == "random":
        return Scores(random_scores(len(components), task.num_examples), 0)
    network = task.plain_model()  # not folded: hooks see every activation
    scores = gradient_scores(
        name,
        network,
        components,
        batches=(batch for _, batch in task.batches()),
        predict=task.predict,
        output=task.outputs[key],
        patch=task.ablation.replaced,
    )
    return Scores(scores, METHODS[name][1])


def measure(
    task: ComponentTask, masks: NDArray[np.bool_], key: str, description: str
) -> NDArray[np.float32]:
    """Evaluate masks [B, N] with a progress bar: outputs float32 [B, T]."""
    parts = []
    with Progress(len(masks), description) as progress:
        for start in range(0, len(masks), task.rows_per_batch):
            batch = masks[start : start + task.rows_per_batch]
            indices = np.arange(start, start + len(batch))
            parts.append(torch.as_tensor(task.rows(indices, batch)[key]).numpy())
            progress.advance(len(batch))
    return np.concatenate(parts)


def fresh_masks(components: int, fraction: float, rows: int) -> NDArray[np.bool_]:
    """Draw evaluation masks, bool [rows, components]; each component is ablated by chance α.

    Raises
    ------
    ScoringError
        If α is not between 0 and 1, or there are fewer than 3 rows.
    """
    if not 0 < fraction < 1:
        raise ScoringError(f"an ablated fraction lies between 0 and 1, not {fraction}")
    if rows < 3:
        raise ScoringError(f"a correlation needs at least 3 rows, not {rows}")
    seed = FRESH_SEED + round(fraction * 1e6)
    return draw(MaskDesign(keep_prob=1 - fraction, seed=seed), np.arange(rows), components)


def compare(
    methods: Mapping[str, Scores],
    fractions: Sequence[float],
    rows: int,
    truth: Callable[[NDArray[np.bool_]], NDArray[Any]],
    components: int,
) -> list[Line]:
    """Correlate every method's predictions with the truth at every ablated fraction.

    Parameters
    ----------
    methods : mapping of name to Scores
    fractions : sequence of float
    rows : int
        Fresh ablations at each fraction.
    truth : callable
        Measures masks [B, N]: [B, T].
    components : int
        N.

    Raises
    ------
    ScoringError
        If the scores of a method do not fit the components or targets.
    """
    lines = []
    for fraction in fractions:
        masks = fresh_masks(components, fraction, rows)
        outputs = truth(masks)
        first: HeldOut | None = None
        for name, method in methods.items():
            wanted = (components, outputs.shape[1])
            if method.scores.shape != wanted:
                raise ScoringError(
                    f"the scores of {name} are {list(method.scores.shape)}, but there are "
                    f"{wanted[0]} components and {wanted[1]} targets"
                )
            predicted = masks.astype(np.float64) @ method.scores.astype(np.float64)
            scores = score_arrays(predicted, outputs)
            first = first or scores
            line = _line(name, method, fraction, predicted, outputs)
            by, low, high = _difference(scores, first)
            lines.append(replace(line, difference=by, difference_low=low, difference_high=high))
    return lines


def _difference(scores: HeldOut, first: HeldOut) -> tuple[float, float, float]:
    """How much better than the first method one is, over the same rows."""
    difference = scores.mean - first.mean
    interval, _ = difference_interval(difference, scores.influence - first.influence)
    if scores is first:
        return 0.0, 0.0, 0.0
    return difference, interval.low, interval.high


def _line(
    name: str,
    method: Scores,
    fraction: float,
    predicted: NDArray[np.float64],
    outputs: NDArray[Any],
) -> Line:
    values: dict[str, float] = {}
    for kind in SHOWN:
        interval = correlation_interval(predicted, outputs, kind)
        values[kind] = float(np.nanmean(correlate(predicted, outputs, kind).r))
        values[f"{kind}_low"], values[f"{kind}_high"] = interval.low, interval.high
    passes = method.forward_passes
    return Line(name, passes, method.at_least, fraction, len(outputs), **values)


def passes_text(line: Line) -> str:
    """Return what a method cost: ``1,029``, or ``≥ 692`` where a part is not known."""
    return f"{'≥ ' if line.at_least else ''}{line.forward_passes:,.10g}"


def table(lines: Sequence[Line]) -> str:
    """Return the Pearson correlations as text: a line a method, a column a fraction."""
    fractions = list(dict.fromkeys(line.fraction for line in lines))
    names = list(dict.fromkeys(line.method for line in lines))
    cells = {(line.method, line.fraction): line for line in lines}
    head = ["method", "passes", *(f"α = {fraction:g}" for fraction in fractions)]
    body = [
        [
            name,
            passes_text(cells[name, fractions[0]]),
            *(
                "{0.pearson:+.3f} [{0.pearson_low:.3f}, {0.pearson_high:.3f}]".format(
                    cells[name, f]
                )
                for f in fractions
            ),
        ]
        for name in names
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *body)
    )


def differences(lines: Sequence[Line]) -> str:
    """Say where a method is better or worse than the first one beyond the paired interval."""
    first = lines[0].method
    found = [
        f"{line.method} at α = {line.fraction:g}: {line.difference:+.3f} "
        f"[{line.difference_low:+.3f}, {line.difference_high:+.3f}] for {passes_text(line)} passes"
        for line in lines
        if line.method != first and line.difference_low > 0
    ]
    if not found:
        return f"no method predicts better than {first} beyond the paired interval"
    return f"better than {first} beyond the paired interval: " + "; ".join(found)

"""Derivatives of many seeds and test points, a tile at a time, by any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError, whole_number
from coarlib.history import RecordedRun
from coarlib.history.queries import Queries, Query
from coarlib.history.results import Results
from coarlib.identity import Identity
from coarlib.metagradient.found import Metagradients
from coarlib.metagradient.memory import forecast
from coarlib.metagradient.smoothness import draw_removals, smoothness_of
from coarlib.metagradient.sweep import Sweep, through_gradient_of
from coarlib.progress import Progress
from coarlib.store.claims import Claims, settle_block_rows
from coarlib.store.spec import ArraySpec

Points = tuple[Any, torch.Tensor, str | Query]
SECONDS_BETWEEN_LOOKS = 2.0
SMOOTHNESS_FILE = "smoothness.json"


def over_runs(
    runs: Sequence[Callable[[], RecordedRun]],
    trained: NDArray[np.bool_],
    points: Points,
    about: dict[str, Any],
    *,
    removals: int,
    out: str | Path | None,
    memory: int,
    quiet: bool,
) -> Metagradients:
    """Differentiate the outputs of some runs; see :mod:`coarlib.metagradient.derivatives`."""
    if not runs:
        raise HistoryError("there are no seeds to train with")
    for name, value, least in (("removals", removals, 0), ("memory", memory, 1)):
        if whole_number(value, name) < least:
            raise HistoryError(f"{name} must be at least {least}, not {value}")
    made = _Made(runs, points)
    first, queries = made.take(0)
    settings, dtype = first.walk.history.settings, first.walk.dtype
    if dtype == torch.bfloat16:
        raise HistoryError(
            "NumPy has no bfloat16 to keep derivatives in; train a float32 model (under autocast)"
        )
    about = {
        **about,
        "num_rows": len(points[1]) * len(runs),
        "test inputs": Identity().add(points[0]).hexdigest(),
        "test targets": Identity().add(points[1]).hexdigest(),
        "output function": Identity().add(points[2]).hexdigest(),
    }
    own = np.dtype(str(dtype).removeprefix("torch."))
    schema = {
        "effects": ArraySpec(own, (queries.num_outputs, settings.num_samples)),
        "outputs": ArraySpec(np.dtype(np.float64), (queries.num_outputs,)),
    }
    results = Results.make(out, schema, np.arange(about["num_rows"]), about)
    _fill(made, results, len(points[1]), memory, quiet)
    arrays = results.arrays()
    if arrays is None:
        raise HistoryError(f"{out} still lacks rows")
    effects = np.asarray(arrays["effects"]).reshape(len(runs), -1, settings.num_samples)
    outputs = np.asarray(arrays["outputs"]).reshape(len(runs), -1)
    smoothness = None
    if removals:
        kept = None if out is None else Path(out) / SMOOTHNESS_FILE
        removed = draw_removals(np.flatnonzero(trained[0]), removals)
        found = effects[0], outputs[0]
        smoothness = smoothness_of(first, queries, found, removed, kept)
        smoothness.warn()
    return Metagradients(effects, outputs, trained, smoothness, about)


class _Made:
    """Runs as they are needed: the first, and the last one that was asked for, are kept."""

    def __init__(self, runs: Sequence[Callable[[], RecordedRun]], points: Points) -> None:
        self._runs, self._points = runs, points
        self._made: dict[int, tuple[RecordedRun, Queries]] = {}

    def take(self, number: int) -> tuple[RecordedRun, Queries]:
        if number not in self._made:
            self._made = {key: value for key, value in self._made.items() if key == 0}
            run, (inputs, targets, output) = self._runs[number](), self._points
            run.require_finite()
            queries = Queries(run.model, run.put(inputs), run.put(targets), output)
            queries.count_outputs(run.walk.theta(run.walk.history.first))
            self._made[number] = run, queries
        return self._made[number]


def _fill(made: _Made, results: Results, count: int, memory: int, quiet: bool) -> None:
    """Compute the missing rows; row ``seed · count + n`` is test point n of a seed."""
    missing = results.missing()
    if not len(missing):
        return
    first, queries = made.take(0)
    expected = forecast(first, queries, memory, count)
    updates, through = len(first.walk.numbers), through_gradient_of(first)
    what = f"differentiating ({expected})"
    with Progress(len(missing) * updates, what, "step", quiet) as progress:
        for rows in _tiles(results, expected.at_once):
            for number in np.unique(rows // count).tolist():
                part = rows[rows // count == number]
                run, queries = made.take(number)
                where = torch.from_numpy(part % count).to(run.walk.device)
                advance = _advance(progress, len(part))
                sweep = Sweep(run, queries, advance, through, expected.samples)
                values = queries.values(run.walk.theta(run.walk.history.last), where)
                results.write(part, {"effects": sweep.of(where), "outputs": values})
            progress.reach((len(missing) - len(results.missing())) * updates)


def _advance(progress: Progress, rows: int) -> Callable[[], None]:
    return lambda: progress.advance(rows)


def _tiles(results: Results, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows to compute: of a store, those that no other process has in hand."""
    missing = results.missing()
    if results.store is None:
        yield from (missing[begin : begin + size] for begin in range(0, len(missing), size))
        return
    block = settle_block_rows(results.store, size)
    with Claims(results.store, block) as claims:
        while len(missing):
            mine = claims.next_rows(missing)
            if mine is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                yield from (mine[begin : begin + size] for begin in range(0, len(mine), size))
                claims.finish()
            missing = results.missing()

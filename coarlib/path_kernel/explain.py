"""Explaining predictions by a training history: data, components, tensors and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentSet
from coarlib.devices import float32_products, flushed_denormals, free_bytes
from coarlib.errors import HistoryError, whole_number
from coarlib.history.gradients import SampleGradients
from coarlib.history.inputs import Inputs
from coarlib.history.parameters import ParameterTable
from coarlib.history.queries import Queries, Query
from coarlib.history.results import Results
from coarlib.history.run import RecordedRun
from coarlib.history.sources import Sources
from coarlib.identity import Identity
from coarlib.path_kernel.accumulate import SOURCES, Breakdown, ComponentColumns, parse_axes
from coarlib.path_kernel.adjoint import CHECKS, Sweep
from coarlib.path_kernel.decomposition import Decomposition
from coarlib.path_kernel.features import Features
from coarlib.path_kernel.quadrature import checked_tolerance
from coarlib.path_kernel.stacked_integrals import node_bytes
from coarlib.path_kernel.stacked_segments import LIVE_COPIES, stacked_model
from coarlib.progress import Progress
from coarlib.store.spec import ArraySpec

DEFAULT_MEMORY = 512 * 2**20
CHECKED = 32
"""Each how many-th test point is computed twice, to see how good single parts are."""
FEATURE_COPIES = 3
"""Of the features of updates that are computed together: theirs, those before, their factors."""
NODES = 8
"""Nodes of a pair whose factors are kept, about."""
MAX_UPDATES = 64
"""More updates together gain nothing."""
COUNTED_AT = ("taken", "acted")
"""A contribution's step: where the sample's gradient was taken, or where it moved parameters."""


def explain(
    run: RecordedRun,
    inputs: Inputs,
    targets: torch.Tensor,
    *,
    output: str | Query = "all",
    by: Sequence[str | Sequence[str]] = ("sample",),
    components: ComponentSet | None = None,
    step_window: int | None = None,
    count_at: str = "taken",
    tolerance: float | None = None,
    memory: int | None = None,
    out: str | Path | None = None,
    rows: range | None = None,
    quiet: bool = False,
) -> Decomposition | None:
    """Decompose outputs of the trained model on test points.

    Parameters
    ----------
    run : RecordedRun
    inputs [N, ...], targets [N, ...]
        Test points; inputs may be a tuple or mapping of tensors, as for the model; targets as
        ``output`` needs them.
    output : str or callable
        ``"all"`` outputs, the ``"logit"``, ``"log_probability"`` or ``"margin"`` of the target, a
        ``"contrast"`` of two targets, or a function of (one point's output, its target).
    by : sequence
        What to accumulate by: ``"sample"``, ``"component"``, ``"tensor"``, ``"step"``, or pairs.
    components : ComponentSet, optional
    step_window : int, optional
        Updates in one entry of the step axis; 1 by default.
    count_at : {"taken", "acted"}
        Count a contribution at the step its gradient was taken (the adjoint form: fast, memory
        independent of the training set) or at the steps in which it acted through the momentum.
        Sums over steps are equal.
    tolerance : float, optional
        Largest quadrature error of any output in one update; 2e-7 in float64, 3e-5 in float32.
    memory : int, optional
        Bytes that gradients and accumulators may take together, about; sets how many test points
        and updates are computed together. 512 MiB by default; of an accelerator, a quarter of
        what is free.
    out : str or Path, optional
        A store of results, one row a test point; finished rows are kept and not computed again.
    rows : range, optional
        Compute only these test points (several processes may share ``out``); without ``out`` the
        result has these alone.
    quiet : bool

    Returns
    -------
    Decomposition, or None where ``out`` still lacks rows that other processes compute.

    Raises
    ------
    HistoryError
        If the request contradicts itself, training diverged, or ``out`` holds an explanation of
        anything else: of other test points, targets, functions, samples, or another history.

    Warns
    -----
    RuntimeWarning
        If the parts miss the change of the outputs by more than 1%; see
        :meth:`~coarlib.path_kernel.decomposition.Decomposition.verdict`.
    """
    if count_at not in COUNTED_AT:
        raise HistoryError(f"count_at must be taken or acted, not {count_at!r}")
    if step_window is not None and step_window < 1:
        raise HistoryError(f"step_window must be at least 1 update, not {step_window}")
    if memory is not None and whole_number(memory, "memory") < 1:
        raise HistoryError(f"memory must be at least 1 byte, not {memory}")
    walk = run.walk
    allowed = checked_tolerance(tolerance, walk.dtype)
    history, settings = walk.history, walk.history.settings
    run.require_finite()
    queries = Queries(run.model, run.put(inputs), run.put(targets), output)
    wanted = np.arange(len(queries)) if rows is None else np.array(rows, np.int64)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(queries)):
        raise HistoryError(f"rows {rows} are not test points of 0 to {len(queries) - 1}")
    outputs = queries.count_outputs(walk.theta(history.first))
    tracked = settings.table.subset(settings.tracked)
    breakdown = Breakdown(
        axes=parse_axes(by, components is not None),
        tensors=tracked.names,
        num_samples=settings.num_samples,
        first=history.first,
        last=history.last,
        window=step_window or 1,
        components=None if components is None else ComponentColumns(components, tracked),
    )
    about = {
        "by": [list(axes) for axes in breakdown.axes],
        "count_at": count_at,
        "tolerance": allowed,
        "output": output if isinstance(output, str) else getattr(output, "__name__", "custom"),
        "tensors": list(tracked.names),
        "components": None if components is None else components.to_json(),
        "first": history.first,
        "last": history.last,
        "window": breakdown.window,
        "optimizer": settings.kind.name,
        "num_test": len(queries),
        "num_rows": len(queries),
        "num_outputs": outputs,
        **dict(zip(("initial_is", "final_is"), history.describe_ends(), strict=True)),
    }
    if out is not None:
        about["depends_on"] = {
            **run.identity(),
            "test inputs": Identity().add(inputs).hexdigest(),
            "test targets": Identity().add(targets).hexdigest(),
            "output function": Identity().add(output).hexdigest(),
        }
    stacked = stacked_model(run, queries, tracked.names)
    row = queries.bytes_of_one(walk.theta(history.first))
    plan = _Plan.within(
        memory or _default_memory(walk.device),
        breakdown,
        tracked,
        points=len(wanted),
        outputs=outputs,
        dtype=walk.dtype,
        node=None if stacked is None else node_bytes(queries, stacked, walk.theta(history.first)),
        on_cpu=walk.device.type == "cpu",
        taken=count_at == "taken",
    )
    features = Features(
        queries,
        tracked.names,
        tolerance=allowed,
        chunk_bytes=plan.chunk,
        stacked=stacked,
        row_bytes=row,
    )
    sources = Sources(
        SampleGradients(run.model, run.loss),
        run.samples,
        tracked.names,
        per_sample=breakdown.by_sample,
        chunk_bytes=plan.chunk,
        stacked=stacked,
        row_bytes=LIVE_COPIES * row + plan.products,
    )
    results = Results.make(out, _schema(breakdown, outputs, walk.dtype), wanted, about)
    missing = results.missing()
    tiles = [missing[b : b + plan.tile] for b in range(0, len(missing), plan.tile)]
    progress = Progress(len(tiles) * len(walk.numbers), "explaining", "step", quiet)
    with progress, float32_products(), flushed_denormals():
        sweep = Sweep(walk, features, sources, breakdown, plan.updates, progress.advance)
        for tile in tiles:
            again = tile[tile % CHECKED == 0]
            points = torch.from_numpy(np.append(tile, len(queries) + again)).to(walk.device)
            if count_at == "taken":
                found = sweep.adjoint(points)
            else:
                found = sweep.forward(points, plan.sample_tile)
            results.write(tile, _with_part_error(found, breakdown, np.searchsorted(tile, again)))
    arrays = results.arrays()
    if arrays is None:
        return None
    finished = Decomposition(arrays, about)
    if len(missing):
        finished.warn()
    return finished


def _with_part_error(
    found: dict[str, torch.Tensor], breakdown: Breakdown, again: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """Compare the points at ``again`` with their more accurate copies, last, and drop these."""
    count = len(found["initial"]) - len(again)
    kept = {name: values[:count] for name, values in found.items()}
    error = torch.full_like(kept["initial"], torch.nan, dtype=torch.float64)
    where = torch.from_numpy(again).to(error.device)
    error[where] = 0.0
    for name in breakdown.arrays():
        off = (found[name][where] - found[name][count:]).abs().flatten(2).double()
        if off.shape[2]:
            error[where] = torch.maximum(error[where], off.amax(2))
    return {**kept, "part_error": error}


def _default_memory(device: torch.device) -> int:
    """Bytes to take where the user names none: of an accelerator, a quarter of what is free."""
    return DEFAULT_MEMORY if device.type == "cpu" else max(DEFAULT_MEMORY, free_bytes(device) // 4)


@dataclass(frozen=True)
class _Plan:
    """What is computed together, so that it keeps within a number of bytes.

    Attributes
    ----------
    tile, sample_tile, updates : int
        Test points, momentum buffers of samples, and updates.
    chunk : int
        Bytes for what is formed from point to point or from sample to sample.
    products : int
        Bytes that products with one sample's gradients take.
    """

    tile: int
    sample_tile: int
    updates: int
    chunk: int
    products: int

    @classmethod
    def within(
        cls,
        memory: int,
        breakdown: Breakdown,
        tracked: ParameterTable,
        *,
        points: int,
        outputs: int,
        dtype: torch.dtype,
        node: int | None,
        on_cpu: bool,
        taken: bool,
    ) -> _Plan:
        size = torch.finfo(dtype).bits // 8
        accumulated = sum(int(np.prod(shape)) for shape in breakdown.arrays().values())
        share = memory // 2 if taken else memory // 4
        feature = outputs * size * tracked.total
        kept = feature + 2 * outputs * size * accumulated
        tile = min(max(1, share // (kept + FEATURE_COPIES * feature)), max(1, points))
        tile_with_copies = tile + -(-tile // CHECKED)
        updates = 1
        if node is not None:
            each = FEATURE_COPIES * feature
            if on_cpu:  # Φ of a few updates at a time, of the others the factors
                each = min(each, NODES * node)
            most = (share - tile_with_copies * kept) // (tile_with_copies * each)
            updates = min(max(1, most), MAX_UPDATES)
        queries = tile_with_copies * outputs
        sizes = zip(tracked.shapes, tracked.sizes, strict=True)
        widest = max(min(entries, queries * shape[0]) for shape, entries in sizes)
        return cls(
            tile,
            max(1, memory // 4 // (size * tracked.total)),
            updates,
            memory // 4,
            size * (widest + queries * len(tracked.names)),
        )


def _schema(breakdown: Breakdown, outputs: int, dtype: torch.dtype) -> dict[str, ArraySpec]:
    double, own = np.dtype(np.float64), np.dtype(str(dtype).removeprefix("torch."))
    plain = ("initial", "final", "outside", "rounding", "part_error", *SOURCES, *CHECKS)
    return {
        **{name: ArraySpec(double, (outputs,)) for name in plain},
        **{name: ArraySpec(own, (outputs, *rest)) for name, rest in breakdown.arrays().items()},
    }

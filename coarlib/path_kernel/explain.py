"""Explaining predictions by a training history: data, components, tensors and steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentSet
from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.history.gradients import SampleGradients
from coarlib.history.queries import Queries, Query
from coarlib.history.run import RecordedRun
from coarlib.history.sources import Sources
from coarlib.path_kernel.accumulate import SOURCES, Breakdown, ComponentColumns, parse_axes
from coarlib.path_kernel.adjoint import CHECKS, Sweep
from coarlib.path_kernel.decomposition import ABOUT_FILE, Decomposition
from coarlib.path_kernel.features import Features
from coarlib.path_kernel.quadrature import DEFAULT_TOLERANCE
from coarlib.progress import Progress
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec

DEFAULT_MEMORY = 512 * 2**20
COUNTED_AT = ("taken", "acted")
"""A contribution's step: where the sample's gradient was taken, or where it moved parameters."""


def explain(
    run: RecordedRun,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    output: str | Query = "all",
    by: Sequence[str | Sequence[str]] = ("sample",),
    components: ComponentSet | None = None,
    step_window: int | None = None,
    count_at: str = "taken",
    tolerance: float | None = None,
    memory: int = DEFAULT_MEMORY,
    out: str | Path | None = None,
    rows: range | None = None,
    quiet: bool = False,
) -> Decomposition | None:
    """Decompose outputs of the trained model on test points.

    Parameters
    ----------
    run : RecordedRun
    inputs [N, ...], targets [N, ...]
        Test points; targets as ``output`` needs them.
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
    memory : int
        Bytes that gradients and accumulators may take together, about; sets the tile of test
        points.
    out : str or Path, optional
        A store of results, one row a test point; finished rows are kept and not computed again.
    rows : range, optional
        Compute only these test points (several processes may share ``out``).
    quiet : bool

    Returns
    -------
    Decomposition, or None where ``out`` still lacks rows that other processes compute.

    Raises
    ------
    HistoryError
        If the request contradicts itself, or ``out`` holds another explanation.
    """
    if count_at not in COUNTED_AT:
        raise HistoryError(f"count_at must be taken or acted, not {count_at!r}")
    walk = run.walk
    history, settings = walk.history, walk.history.settings
    queries = Queries(run.model, run.put(inputs), run.put(targets), output)
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
    allowed = DEFAULT_TOLERANCE[walk.dtype] if tolerance is None else tolerance
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
        "num_outputs": outputs,
    }
    tiling = _Tiles.within(
        memory,
        breakdown,
        outputs=outputs,
        parameters=tracked.total,
        dtype=walk.dtype,
        count_at=count_at,
    )
    features = Features(queries, tracked.names, allowed, tiling.chunk)
    sources = Sources(
        SampleGradients(run.model, run.loss),
        run.samples,
        tracked.names,
        breakdown.by_sample,
        chunk_bytes=tiling.chunk,
    )
    sink = _Sink.make(out, _schema(breakdown, outputs, walk.dtype), len(queries), about)
    wanted = sink.missing(rows or range(len(queries)))
    tiles = [wanted[b : b + tiling.tile] for b in range(0, len(wanted), tiling.tile)]
    with Progress(len(tiles) * len(walk.numbers), "explaining", "step", quiet) as progress:
        sweep = Sweep(walk, features, sources, breakdown, progress.advance)
        for tile in tiles:
            points = torch.from_numpy(tile).to(walk.device)
            if count_at == "taken":
                found = sweep.adjoint(points)
            else:
                found = sweep.forward(points, tiling.sample_tile)
            sink.write(tile, found)
    return sink.result()


@dataclass(frozen=True)
class _Tiles:
    """Tile sizes that keep within a number of bytes."""

    tile: int
    sample_tile: int
    chunk: int

    @classmethod
    def within(
        cls,
        memory: int,
        breakdown: Breakdown,
        *,
        outputs: int,
        parameters: int,
        dtype: torch.dtype,
        count_at: str,
    ) -> _Tiles:
        size = torch.finfo(dtype).bits // 8
        accumulated = sum(int(np.prod(shape)) for shape in breakdown.arrays().values())
        point = outputs * size * (3 * parameters + 2 * accumulated)
        share = memory // 2 if count_at == "taken" else memory // 4
        samples = max(1, memory // 4 // (size * parameters))
        return cls(max(1, share // point), samples, memory // 4)


def _schema(breakdown: Breakdown, outputs: int, dtype: torch.dtype) -> dict[str, ArraySpec]:
    double, own = np.dtype(np.float64), np.dtype(str(dtype).removeprefix("torch."))
    plain = ("initial", "final", "outside", *SOURCES, *CHECKS)
    return {
        **{name: ArraySpec(double, (outputs,)) for name in plain},
        **{name: ArraySpec(own, (outputs, *rest)) for name, rest in breakdown.arrays().items()},
    }


class _Sink:
    """Where finished test points go: a store, or memory."""

    def __init__(
        self, schema: dict[str, ArraySpec], count: int, about: dict[str, Any], store: Store | None
    ) -> None:
        self._about, self._store, self._schema = about, store, schema
        self._arrays: dict[str, NDArray[Any]] = {}
        if store is None:
            self._arrays = {k: np.zeros((count, *a.shape), a.dtype) for k, a in schema.items()}

    @classmethod
    def make(
        cls,
        out: str | Path | None,
        schema: dict[str, ArraySpec],
        count: int,
        about: dict[str, Any],
    ) -> _Sink:
        if out is None:
            return cls(schema, count, about, None)
        path = Path(out)
        initialize(path, StoreSpec(count, schema))
        file = path / ABOUT_FILE
        if not file.exists():
            with whole_file(file, "w") as stream:
                json.dump(about, stream, indent=1)
                stream.write("\n")
        there = json.loads(file.read_text(encoding="utf-8"))
        for key, value in json.loads(json.dumps(about)).items():
            if there.get(key) != value:
                raise HistoryError(
                    f"{path} holds another explanation ({key} is {there.get(key)!r:.80} there and "
                    f"{value!r:.80} now); choose another path"
                )
        return cls(schema, count, about, Store.open(path))

    def missing(self, rows: range) -> NDArray[np.int64]:
        chosen = np.array(rows, np.int64)
        if self._store is None:
            return chosen
        return chosen[~self._store.completed()[chosen]]

    def write(self, rows: NDArray[np.int64], found: dict[str, torch.Tensor]) -> None:
        arrays = {
            key: found[key].detach().cpu().numpy().astype(array.dtype, copy=False)
            for key, array in self._schema.items()
        }
        if self._store is None:
            for key, values in arrays.items():
                self._arrays[key][rows] = values
            return
        with RowWriter(self._store) as writer:
            writer.write(rows, {k: np.ascontiguousarray(v) for k, v in arrays.items()})

    def result(self) -> Decomposition | None:
        if self._store is None:
            return Decomposition(self._arrays, self._about)
        if not self._store.completed().all():
            return None
        return Decomposition.open(self._store.path)

"""Fills rows of a store from a task: the only place where the two meet."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ArgumentError, NonFiniteError, RowRangeError, StoreError, TaskError
from coarlib.filling.claiming import ClaimedBatches
from coarlib.filling.row_checks import check_rows, rows_of_task
from coarlib.filling.settling import settle_task
from coarlib.filling.stopping import Abandoned, StopSignals
from coarlib.masks import MaskDesign
from coarlib.progress import Progress
from coarlib.store import RowWriter, Store, StoreLike
from coarlib.store.adopt import adoptable
from coarlib.store.checksum import row_checksums
from coarlib.store.claims import DEFAULT_TTL
from coarlib.store.components import settle_components
from coarlib.store.design import settle_labels
from coarlib.store.identity import identity_of_row
from coarlib.store.provenance import WorkerLog

if TYPE_CHECKING:
    import torch

    from coarlib.task import Task

MOST_TTL = 7 * 86400.0
# Where so many rows are refused and none was good, the task is at fault, not a row.
HOPELESS_ROWS = 8


@dataclass(frozen=True)
class FillOptions:
    """How a worker goes about it.

    Parameters
    ----------
    rerun : bool
        Compute rows again that are completed already.
    rows_per_batch : int, optional
        Rows asked of the task at once; the task's own choice by default.
    allow_nonfinite : bool
        Record rows with NaN or inf instead of refusing them.
    quiet : bool
        No progress bar.
    claim : bool
        Share the rows out with any other workers by claims, instead of doing all of them.
    claim_ttl : float
        Seconds without a heartbeat after which another worker's block is taken over.
    claim_wait : bool
        At the end, wait for blocks of other workers (and take them over should they die).
    allow_other_task : bool
        Make rows although another task made some (see :mod:`coarlib.store.identity`).
    prepared : bool
        The task is prepared on the device already.
    ways_round : tuple of str
        Which of ``allow_nonfinite``, ``allow_other_task`` and ``rerun`` the caller's own users
        can say, so that a refusal names no other.
    origin : dict
        What rebuilds the task: ``{"task": "module:Class", "settings": {...}}``, for provenance.
    """

    rerun: bool = False
    rows_per_batch: int | None = None
    allow_nonfinite: bool = False
    quiet: bool = False
    claim: bool = False
    claim_ttl: float = DEFAULT_TTL
    claim_wait: bool = True
    allow_other_task: bool = False
    prepared: bool = False
    ways_round: tuple[str, ...] = ("allow_nonfinite", "allow_other_task", "rerun")
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.claim_ttl <= MOST_TTL:  # inf and nan would stop the heartbeat
            raise ArgumentError(
                f"claim_ttl must be above 0 and at most {MOST_TTL:g} seconds, not {self.claim_ttl}"
            )


@dataclass
class FillReport:
    """What a worker did."""

    written: int = 0
    skipped: int = 0
    refused: list[str] = field(default_factory=list)
    nonfinite_recorded: int = 0
    taken_over: int = 0
    seconds: float = 0.0
    stopped: bool = False
    abandoned: bool = False


def row_range(start: int, end: int, num_models: int) -> NDArray[np.int64]:
    """Return rows ``start`` to ``end`` (exclusive); RowRangeError if the store lacks them."""
    if not 0 <= start < end <= num_models:
        why = "is empty" if start >= end else "lies outside the store"
        raise RowRangeError(
            f"the row range {start} to {end} (exclusive) {why}: the store has rows 0 to "
            f"{num_models - 1}"
        )
    return np.arange(start, end, dtype=np.int64)


def fill(
    store: StoreLike,
    task: Task,
    rows: NDArray[np.int64],
    device: torch.device,
    options: FillOptions | None = None,
) -> FillReport:
    """Compute and commit rows of ``store``.

    Rows that are committed already are skipped. A worker killed at any moment leaves only whole
    rows; running it again does the rest.

    Parameters
    ----------
    store : Store or path
    task : Task
        Prepared here, on ``device``, unless ``options`` say that it is.
    rows : int64 [K]
        Ascending row indices.

    Raises
    ------
    TaskError
        If masks and task do not fit, or the task returns a wrong key, shape or dtype.
    NonFiniteError
        At the end, naming the rows that were refused for NaN, inf or overflow; good rows are kept.
    StoreError
        If a row cannot be written.
    """
    store, options = Store.open(store), options or FillOptions()
    design = store.design
    report = FillReport()
    todo = _rows_to_do(store, rows, options, report)
    if not len(todo):
        return report
    _check_masks_are_drawn(store, task, design)
    with StopSignals() as stop:
        try:
            if not options.prepared:
                task.prepare(device)
            _check_width(store, task)
            settle_labels(store.path, store.spec, task.labels)
            settle_components(store.path, task.component_table)
            may_allow = "allow_other_task" in options.ways_round
            settle_task(store.path, task, _name(task, options), options.allow_other_task, may_allow)
            _Filler(store, task, design, options, report).run(todo, stop)
        except Abandoned:
            report.abandoned = True
    report.stopped = stop.requested and _left_open(store, todo, report)
    if report.refused and not report.stopped:
        raise NonFiniteError(_refusal(report, options))
    return report


def _left_open(store: Store, rows: NDArray[np.int64], report: FillReport) -> bool:
    """Whether rows are still to be done by somebody (a signal may come with the last of them)."""
    return report.abandoned or bool((~store.completed_among(rows)).any())


def _name(task: Task, options: FillOptions) -> str:
    return str(options.origin.get("task", f"{type(task).__module__}:{type(task).__qualname__}"))


def _origin(task: Task, options: FillOptions) -> dict[str, Any]:
    return {"task": _name(task, options), **options.origin, "identity": task.identity()}


def _rows_to_do(
    store: Store, rows: NDArray[np.int64], options: FillOptions, report: FillReport
) -> NDArray[np.int64]:
    flags = store.flags()[rows]  # before the checksums: other workers write these first
    committed = store.completed()[rows]
    if not options.rerun:
        _refuse_to_overwrite(store, rows[~committed & (flags != 0)], options)
    unflagged = rows[committed & (flags != 1)]
    if len(unflagged):  # a writer died between checksum and flag
        with RowWriter(store) as writer:
            writer.mark_completed(unflagged)
    if options.rerun:
        return rows
    report.skipped = int(committed.sum())
    return rows[~committed]


def _refuse_to_overwrite(store: Store, rows: NDArray[np.int64], options: FillOptions) -> None:
    """Raise StoreError if flagged rows without a checksum are whole: another program's work."""
    if len(rows):  # a worker that computes rows again takes them back, flag first
        rows = rows[(store.flags()[rows] != 0) & ~store.completed_among(rows)]
    good = sorted(adoptable(store, rows).good) if len(rows) else []
    if good:
        raise StoreError(
            f"{len(good)} rows of {store.path} were written by another program (the first is "
            f"{good[0]}): adopt them (coar verify), or drop them there"
            + (", or compute them again (rerun)" if "rerun" in options.ways_round else "")
        )


def _check_masks_are_drawn(store: Store, task: Task, design: MaskDesign | None) -> None:
    key = store.mask_key
    if design is None and key is not None and not task.own_masks:
        raise TaskError(
            f"nothing says how {key} of {store.path} is drawn: say with which probability a "
            "component is kept (keep), or give a spec with a design"
        )


def _check_width(store: Store, task: Task) -> None:
    key, wanted = store.mask_key, task.num_features
    if key is None or wanted is None:
        return
    width = store.spec.schema[key].shape[0]
    if width != wanted:
        raise TaskError(
            f"{key} of {store.path} has {width} features a row but the task has {wanted} "
            "components; initialise a store whose spec says so"
        )


@dataclass
class _Filler:
    """One worker's pass over one store."""

    store: Store
    task: Task
    design: MaskDesign | None
    options: FillOptions
    report: FillReport
    refused: list[int] = field(default_factory=list)

    def run(self, rows: NDArray[np.int64], stop: StopSignals) -> None:
        """Fill ``rows``, batch by batch, until done or told to stop."""
        started = time.monotonic()
        size = self.options.rows_per_batch or self.task.rows_per_batch
        description = f"filling {self.store.path.name}"
        with (
            RowWriter(self.store) as writer,
            WorkerLog(self.store.path, _origin(self.task, self.options)) as log,
            Progress(len(rows), description, quiet=self.options.quiet) as progress,
            closing(self.batches(rows, size, stop, progress)) as batches,
        ):
            for batch in batches:
                if stop.requested:
                    break
                self.fill_batch(self._still_wanted(batch), writer, log)
                progress.advance(len(batch))
        self.report.seconds = time.monotonic() - started

    def _still_wanted(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leave out rows that another worker has committed meanwhile."""
        if self.options.rerun:
            return rows
        return rows[~self.store.completed_among(rows)]

    def batches(
        self, rows: NDArray[np.int64], size: int, stop: StopSignals, progress: Progress
    ) -> Generator[NDArray[np.int64], None, None]:
        """Yield the rows to do, batch by batch: all, or what this worker can claim of them."""
        if not self.options.claim:
            for first in range(0, len(rows), size):
                yield rows[first : first + size]
            return
        ttl, wait = self.options.claim_ttl, self.options.claim_wait
        claimed = ClaimedBatches(self.store, size, ttl, wait, self.refused)
        try:
            yield from claimed.batches(rows, stop, progress)
        finally:
            self.report.taken_over = claimed.taken_over

    def fill_batch(self, rows: NDArray[np.int64], writer: RowWriter, log: WorkerLog) -> None:
        """Compute, check and commit one batch of rows."""
        if not len(rows):
            return
        started, clock = time.time(), time.monotonic()
        returned = self._compute(rows)
        arrays, problems = check_rows(self.store.spec.schema, rows, returned)
        if problems and self.options.allow_nonfinite:
            self.report.nonfinite_recorded += len(problems)
        elif problems:
            self.report.refused.extend(problems.values())
            self.refused.extend(problems)
            good = ~np.isin(rows, list(problems))
            if not self.report.written and not good.any() and len(self.refused) >= HOPELESS_ROWS:
                raise NonFiniteError(_refusal(self.report, self.options))
            rows, arrays = rows[good], {key: value[good] for key, value in arrays.items()}
        if len(rows):
            # The line first, so that no committed row is without one.
            log.batch(rows, row_checksums(rows, arrays), started, time.monotonic() - clock)
            writer.write(rows, arrays)
            self.report.written += len(rows)

    def _compute(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        if self.design is None:
            return rows_of_task(self.task, rows, np.empty((len(rows), 0), np.bool_))
        masks = self.store.draw_masks(self.design, rows)
        found = {self.design.array: masks, **rows_of_task(self.task, rows, masks)}
        if found[self.design.array] is not masks and not np.array_equal(
            found[self.design.array], masks
        ):
            raise TaskError(
                f"the task returned other {self.design.array} than the store's design draws; leave "
                "them out, or initialise a store without a design"
            )
        return found


def _refusal(report: FillReport, options: FillOptions) -> str:
    shown = "; ".join(report.refused[:3])
    more = f" and {len(report.refused) - 3} more rows" if len(report.refused) > 3 else ""
    return (
        f"the task returned values that cannot be trusted: {shown}{more}; "
        f"{len(report.refused)} rows were refused and {report.written} written "
        + ("(allow_nonfinite records them)" if "allow_nonfinite" in options.ways_round
           else "(mend the task, or leave out the examples whose outputs these are)")
    )  # fmt: skip


def recompute(
    store: Store, task: Task, row: int, device: torch.device, allow_other_task: bool = False
) -> dict[str, float]:
    """Compute ``row`` again and return the largest difference of each array from the store's.

    Differences are taken between stored values, so rounding to the stored dtype is included; a
    NaN in one place only counts as infinite.

    Raises
    ------
    StoreError
        If another task made the row and ``allow_other_task`` is not said.
    """
    design, rows = store.design, np.array([row], dtype=np.int64)
    task.prepare(device)
    made_by = identity_of_row(store.path, row)
    mine = task.adopt(made_by)
    if None not in (made_by, mine) and made_by != mine and not allow_other_task:
        raise StoreError(
            f"row {row} of {store.path} was made by another task (identity {made_by}) than this "
            f"one ({mine}): give its model, data and settings, or allow it (allow_other_task)"
        )
    _check_width(store, task)
    filler = _Filler(store, task, design, FillOptions(), FillReport())
    arrays, _ = check_rows(store.spec.schema, rows, filler._compute(rows))
    differences = {}
    for key, value in arrays.items():
        stored = np.asarray(store.array(key)[row : row + 1])
        new, old = value.astype(np.float64), stored.astype(np.float64)
        same = (new == old) | (np.isnan(new) & np.isnan(old))
        gap = np.abs(new - old)
        gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
        differences[key] = float(gap.max(initial=0.0))
    return differences

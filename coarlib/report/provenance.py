"""What was run: the spec, the task, the rows, versions and cost, as a store recorded them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from coarlib.store import Store
from coarlib.store.provenance import read_batches

__all__ = ["RunRecord", "read_run"]


@dataclass
class RunRecord:
    """The workers of a store, taken together.

    Attributes
    ----------
    tasks : dict
        Task name -> its recorded settings (of the last worker seen).
    versions : set of str
    workers, rows : int
        Rows count again when they were computed again.
    seconds : float
        Working time of all workers.
    first, last : float or None
        Unix seconds of the first start and the last end.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    workers: int = 0
    rows: int = 0
    seconds: float = 0.0
    first: float | None = None
    last: float | None = None


def read_run(store: Store) -> RunRecord:
    """Read what the workers of a store recorded; empty for a store of another program."""
    record = RunRecord()
    seen: Counter[str] = Counter()
    for batch in read_batches(store.path):
        worker = batch.worker
        seen[str(worker.get("worker"))] += 1
        task = worker.get("task")
        if isinstance(task, dict):
            record.tasks[str(task.get("task", task.get("name", "?")))] = task
        versions = worker.get("versions")
        if isinstance(versions, dict):
            record.versions.add(", ".join(f"{name} {v}" for name, v in versions.items()))
        record.rows += batch.num_rows
        record.seconds += batch.seconds
        end = batch.started + batch.seconds
        record.first = batch.started if record.first is None else min(record.first, batch.started)
        record.last = end if record.last is None else max(record.last, end)
    record.workers = len(seen)
    return record


def when(seconds: float | None) -> str:
    """Show Unix seconds as a UTC minute."""
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """Show a number of seconds in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def short_json(content: dict[str, Any], longest: int = 4000) -> str:
    """Show JSON with an indent, cut where it would fill the page (explicit designs)."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[:longest] + "\n… (cut)"

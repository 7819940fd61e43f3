"""Show a store at a glance: rows done, claimed and missing, rate, ETA, workers, size.

The same of what lies within it: added outputs, and blocks of gradient passes and trials.

coar status STORE [--json] [--watch] [--rows_per_task 100]

Exit code 1 says that something is wrong: torn rows, or missing rows whose jobs failed; with
--watch also that nobody has worked on the missing rows for a minute.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from coarlib.cluster.overview import Overview, overview
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import after_rows, next_step
from coarlib.errors import printable
from coarlib.store import Store
from coarlib.store.status import StoreStatus, slurm_array, status

COMMAND = Command(
    "status",
    __doc__,
    {
        "store": common.store(),
        "json": common.flag("one JSON object, for scripts"),
        "watch": common.flag("refresh until the store is full"),
        "interval": Param(float, "seconds between refreshes", default=5.0),
        "rows_per_task": Param(Whole(1), "rows of one SLURM array task", default=100),
    },
)
SHOWN_RANGES = 12
IDLE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the status of the store that the arguments name."""
    args = COMMAND.parse(argv)
    idle_since = time.monotonic()
    while True:
        found = status(Store.open(args.store))
        if args.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        jobs = overview(args.store)
        if args.json:
            print(json.dumps({**asdict(found), "jobs": jobs and jobs.as_dict()}))
        else:
            print("\n".join([describe(found, args.rows_per_task), *(jobs.lines() if jobs else [])]))
            print(
                next_step("status", args.store, watch=True)
                if any(part.workers for part in found.everything) and not _full(found)
                else after_rows(Store.open(args.store))
            )
        if any(part.workers for part in found.everything) or (jobs and jobs.running):
            idle_since = time.monotonic()
        idle = time.monotonic() - idle_since > max(IDLE_SECONDS, 2 * args.interval)
        if not args.watch or _full(found) or idle:
            if idle:
                print(f"nobody has worked on the {_missing(found)} for a minute")
            if idle or _failed(found, jobs):
                sys.exit(1)
            return
        sys.stdout.flush()
        time.sleep(max(0.1, args.interval))


def _full(found: StoreStatus) -> bool:
    return all(part.complete == part.num_models for part in found.everything)


def _missing(found: StoreStatus) -> str:
    """What is missing, in words: ``3 missing rows and 2 missing blocks of trials``."""
    parts = {"": found, **found.inside}
    return " and ".join(
        f"{part.num_models - part.complete} missing {_unit(part)}" + (f" of {name}" if name else "")
        for name, part in parts.items()
        if part.complete < part.num_models
    )


def _failed(found: StoreStatus, jobs: Overview | None) -> bool:
    """Whether a script should stop here: torn rows, or missing ones whose jobs failed."""
    # Rows that are being written look torn.
    torn = any(part.torn > 0 and not part.workers for part in found.everything)
    missing = found.complete < found.num_models and not found.workers
    return torn or bool(missing and jobs and jobs.failed and not jobs.running)


def _unit(found: StoreStatus) -> str:
    return "rows" if found.passes_of_a_row is None else "blocks"


def _count(found: StoreStatus, name: str) -> str:
    """Say how many rows are complete, or blocks and the passes (or trials) that they hold."""
    done, whole, size = found.complete, found.num_models, found.passes_of_a_row
    share = f"complete ({done / whole:.1%})"
    if size is None:
        return f"{done} of {whole} rows {share}"
    return f"{done * size} of {whole * size} {name}, {done} of {whole} blocks {share}"


def describe(found: StoreStatus, rows_per_task: int) -> str:
    """Return the status as lines for people, of the store and of those within it."""
    parts = [_described(found, "")]
    parts += [_described(part, name.replace("_", " ")) for name, part in found.inside.items()]
    if found.missing_ranges:
        parts[0] += (
            f"\n  SLURM        --array={slurm_array(found.missing_ranges, rows_per_task)}  "
            f"(task i fills rows i*{rows_per_task} to (i+1)*{rows_per_task})"
        )
    return "\n".join(parts)


def _described(found: StoreStatus, name: str) -> str:
    lines = [
        f"{found.path}: {_count(found, name)}",
        f"  claimed      {found.claimed}",
        f"  missing      {found.missing}",
        f"  torn         {found.torn}{_about_torn(found)}",
        f"  rate         {_rate(found)}",
        f"  workers      {_workers(found)}",
        f"  on disk      {_size(found.bytes_on_disk)} of {_size(found.bytes_when_full)} when full",
    ]
    if not found.has_checksums:
        lines.append("  unverified   made by another program, rows carry no checksums")
    if found.num_tasks > 1:
        lines.append(
            f"  tasks        {found.num_tasks} different ones (verify tells the rows of each)"
        )
    if found.missing_ranges:
        shown = ",".join(f"{a}-{b - 1}" for a, b in found.missing_ranges[:SHOWN_RANGES])
        more = ",…" if len(found.missing_ranges) > SHOWN_RANGES else ""
        lines.append(f"  {_unit(found)} to fill {shown}{more}")
    return "\n".join(lines)


def _about_torn(found: StoreStatus) -> str:
    if not found.torn:
        return " (verify reads the bytes)"
    return " or being written just now" if found.workers else " (coar verify --repair)"


def _rate(found: StoreStatus) -> str:
    if found.rows_per_second is None:
        return f"no {_unit(found)} recorded yet"
    rate = f"{found.rows_per_second:.3g} {_unit(found)}/s"
    return rate if found.eta_seconds is None else f"{rate}, {_duration(found.eta_seconds)} left"


def _workers(found: StoreStatus) -> str:
    if not found.workers:
        return "none alive"
    shown = "; ".join(
        f"{printable(w['worker'])} (last sign of life {w['seconds_since_sign_of_life']:.0f} s ago)"
        for w in found.workers[:4]
    )
    return f"{len(found.workers)} alive: {shown}" + ("; …" if len(found.workers) > 4 else "")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


if __name__ == "__main__":
    run(main)

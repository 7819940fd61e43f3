"""What the queue says of a store's jobs, joined with what their logs say."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coarlib.cluster.queue import LIVE, QueuedTask, slurm_is_here, tasks_of
from coarlib.cluster.record import Submitted, log_files, read_jobs, run_directory, tail
from coarlib.errors import ClusterError, printable

__all__ = ["FailedTask", "Overview", "live_jobs", "overview"]

LINES_OF_ERROR = 3
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class FailedTask:
    """One job or array task that ended badly: SLURM's word for it, and its last lines."""

    kind: str
    job: str
    task: str
    state: str
    log: str | None
    last_lines: list[str]

    @property
    def name(self) -> str:
        """The id as SLURM writes it."""
        return f"{self.job}_{self.task}" if self.task else self.job


@dataclass
class Overview:
    """The jobs of a store.

    Attributes
    ----------
    run_dir : str
    states : {kind: {state: count}}
        Of all jobs that SLURM remembers, by what they are for (fill, verify, fit …).
    waiting : {kind: reason}
        Why pending ones wait.
    held : {job: reason}
        Jobs and tasks that nothing but ``scontrol release`` sets going again; SLURM holds one
        whose launch failed, and all jobs that depend on it wait with it.
    failed : list of FailedTask
        Newest round first.
    problem : str or None
        Why SLURM could not be asked.
    """

    run_dir: str
    states: dict[str, dict[str, int]] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    failed: list[FailedTask] = field(default_factory=list)
    problem: str | None = None

    @property
    def running(self) -> bool:
        """Whether SLURM will still do something by itself, as far as it could be asked."""
        going = {state for states in self.states.values() for state in states} & LIVE
        return self.problem is not None or (bool(going) and not self.held)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Describe the jobs for people."""
        if self.problem is not None:
            return [f"  queue        {self.problem}"]
        lines = []
        for kind, states in self.states.items():
            shown = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
            why = f" ({self.waiting[kind]})" if kind in self.waiting else ""
            lines.append(f"  jobs {kind:<8}{shown}{why}")
        for name, reason in self.held.items():
            command = f"scontrol release {shlex.quote(name)}"
            lines.append(f"  held         {name} ({reason}); go on with: {command}")
        for failure in self.failed[:SHOWN_FAILURES]:
            lines.append(f"  {failure.kind} {failure.name} {failure.state.lower()}:")
            lines += [f"    {printable(line)}" for line in failure.last_lines or ["(no log)"]]
        if len(self.failed) > SHOWN_FAILURES:
            lines.append(f"  … and {len(self.failed) - SHOWN_FAILURES} more (coar logs)")
        return lines


def overview(path: str | Path) -> Overview | None:
    """Look at the jobs of a store (or plan); None if nothing was submitted for it."""
    try:
        run_dir = run_directory(path)
    except ClusterError:
        return None
    found, jobs = Overview(str(run_dir)), read_jobs(run_dir)
    if not jobs:
        return None
    if not slurm_is_here():
        found.problem = "SLURM's commands are not on this machine"
        return found
    try:
        tasks = tasks_of([job.job for job in jobs])
    except ClusterError as error:
        found.problem = str(error)
        return found
    for kind in dict.fromkeys(job.kind for job in jobs):
        ids = {job.job for job in jobs if job.kind == kind}
        _add(found, kind, [task for task in tasks if task.job in ids])
    found.held = {task.name: task.reason for task in tasks if task.held}
    found.failed = _failures(run_dir, jobs, tasks)
    return found


def _add(found: Overview, kind: str, tasks: list[QueuedTask]) -> None:
    counts: Counter[str] = Counter()
    for task in tasks:
        counts[task.state] += task.count
        if task.state == "PENDING" and task.reason not in ("", "None"):
            found.waiting[kind] = task.reason
    if counts:
        found.states[kind] = dict(counts)


def _failures(run_dir: Path, jobs: list[Submitted], tasks: list[QueuedTask]) -> list[FailedTask]:
    kinds = {job.job: job for job in jobs}
    found = []
    for task in sorted(tasks, key=lambda task: -kinds[task.job].round):
        if task.failed:
            logs = log_files(run_dir, task.job, task.tasks or None)
            lines = tail(logs[-1], LINES_OF_ERROR) if logs else []
            log = str(logs[-1]) if logs else None
            kind = kinds[task.job].kind
            found.append(FailedTask(kind, task.job, task.tasks, task.state, log, lines))
    return found


def live_jobs(run_dir: Path) -> list[str]:
    """Return the ids of jobs that SLURM will still run, those that submit others first."""
    jobs = read_jobs(run_dir)
    live = {task.job for task in tasks_of([job.job for job in jobs]) if task.live}
    ordered = sorted(jobs, key=lambda job: job.kind != "verify")
    return [job.job for job in ordered if job.job in live]

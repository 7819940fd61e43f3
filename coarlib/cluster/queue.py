"""What SLURM says of jobs: squeue, with sacct where it keeps what squeue has forgotten."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from coarlib.errors import ClusterError

__all__ = ["LIVE", "QueuedTask", "cancel", "max_array_size", "slurm_is_here", "tasks_of"]

# States in which SLURM will still run something.
LIVE = frozenset(
    {
        *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING"),
        *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"),
    }
)
DEFAULT_MAX_ARRAY = 1001
TIMEOUT_SECONDS = 60
FIELDS = 5


@dataclass(frozen=True)
class QueuedTask:
    """One job, or one task of an array, as the queue shows it.

    Attributes
    ----------
    job : str
        Job id; of an array, the array's.
    tasks : str
        Index in the array; of tasks that wait together a list such as ``3-7``; "" if no array.
    state : str
        SLURM's word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, …
    reason : str
        Why it waits, or where it runs.
    time_used : str
        Time used, as SLURM writes it.
    """

    job: str
    tasks: str
    state: str
    reason: str
    time_used: str

    @property
    def live(self) -> bool:
        """Whether SLURM will still run something of it."""
        return self.state in LIVE

    @property
    def failed(self) -> bool:
        """Whether it ended other than well."""
        return not self.live and self.state != "COMPLETED"

    @property
    def held(self) -> bool:
        """Whether it waits until someone releases it, as after a launch that failed."""
        return self.state == "REQUEUE_HOLD" or (self.live and "held" in self.reason.lower())

    @property
    def name(self) -> str:
        """The id as SLURM writes it, ``12_3`` or ``12_[3-7]``, without a limit of jobs at once."""
        tasks = self.tasks.split("%")[0]
        if not tasks:
            return self.job
        return f"{self.job}_{tasks}" if tasks.isdigit() else f"{self.job}_[{tasks}]"

    @property
    def count(self) -> int:
        """How many array tasks it stands for."""
        total = 0
        for part in self.tasks.split("%")[0].split(","):
            bounds = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", part)
            total += 1 if bounds is None else _length(*bounds.groups())
        return total


def _length(start: str, stop: str, step: str | None) -> int:
    return (int(stop) - int(start)) // int(step or 1) + 1


def slurm_is_here() -> bool:
    """Whether this machine can submit to SLURM."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def tasks_of(jobs: Sequence[str]) -> list[QueuedTask]:
    """Return what became of ``jobs``; those that SLURM has forgotten are left out.

    Raises
    ------
    ClusterError
        If the queue does not answer.
    """
    if not jobs:
        return []
    words = ["squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", "%F|%K|%T|%r|%M"]
    answer = _call(words, unknown_is_empty=True)
    found = [_task(line) for line in answer.splitlines() if line.count("|") >= FIELDS - 1]
    missing = [job for job in jobs if job not in {task.job for task in found}]
    return found + (_from_accounting(missing) if missing else [])


def _task(line: str) -> QueuedTask:
    job, tasks, state, reason, used = line.split("|", FIELDS - 1)
    return QueuedTask(job, "" if tasks == "N/A" else tasks.strip("[]"), state, reason, used)


def _from_accounting(jobs: Sequence[str]) -> list[QueuedTask]:
    """Ask sacct, where the cluster keeps accounts; nothing otherwise."""
    if shutil.which("sacct") is None:
        return []
    words = ["sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,State,Elapsed"]
    try:
        answer = _call(words)
    except ClusterError:
        return []
    found = []
    for line in answer.splitlines():
        name, state, used = [*line.split("|"), "", ""][:3]
        job, _, task = name.partition("_")
        if state:
            found.append(QueuedTask(job, task.strip("[]"), state.split()[0], "", used))
    return found


def cancel(jobs: Sequence[str]) -> None:
    """Cancel ``jobs``; those that have ended are left alone."""
    if jobs:
        _call(["scancel", *jobs], unknown_is_empty=True)


def max_array_size() -> int:
    """Return one more than the largest array index that this cluster takes."""
    answer = _call(["scontrol", "show", "config"])
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return int(match[1]) if match else DEFAULT_MAX_ARRAY


def _call(words: Sequence[str], unknown_is_empty: bool = False) -> str:
    try:
        result = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{words[0]} is not on this machine; submit from a SLURM login node, or run the plan "
            "here (local)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"{words[0]} did not answer within {TIMEOUT_SECONDS} s; is slurmctld alive?"
        ) from error
    if result.returncode and not (unknown_is_empty and "Invalid job id" in result.stderr):
        reason = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise ClusterError(f"{words[0]} failed: {reason}")
    return result.stdout

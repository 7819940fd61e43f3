"""What has been submitted for a store: one JSON line a job in ``STORE.jobs/jobs.jsonl``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from coarlib.cluster.plan import load_plan
from coarlib.errors import ClusterError
from coarlib.loading import parse_json

__all__ = ["Submitted", "last_round", "log_files", "read_jobs", "run_directory", "tail"]

JOBS_FILE = "jobs.jsonl"
PLAN_FILE = "plan.yaml"
LOGS = "logs"
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Submitted:
    """One sbatch call: the job's id, what it is for, and after which round."""

    job: str
    kind: str
    round: int


def run_directory(path: str | Path) -> Path:
    """Return the directory of submissions that belongs to a store, a plan, or is ``path`` itself.

    Raises
    ------
    ClusterError
        If nothing has been submitted there.
    """
    path = Path(path).absolute()
    if path.is_file():
        path = load_plan(path).run_path
    candidates = [path, path.with_name(f"{path.name}.jobs")]
    for candidate in candidates:
        if (candidate / PLAN_FILE).is_file():
            return candidate
    raise ClusterError(f"nothing was submitted for {path} (there is no {candidates[-1]})")


def read_jobs(run_dir: Path) -> list[Submitted]:
    """Return all jobs submitted so far, oldest first; a line cut short by a crash is passed over.

    A missing file is an empty list.
    """
    try:
        lines = (run_dir / JOBS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ClusterError(f"cannot read {run_dir / JOBS_FILE}: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            record = parse_json(line, "a line of jobs", ClusterError)
            found.append(Submitted(str(record["job"]), record["kind"], int(record["round"])))
        except (ClusterError, ValueError, KeyError, TypeError):
            continue
    return found


def last_round(run_dir: Path) -> int:
    """Return the highest round that has scripts; 0 if none."""
    names = [re.fullmatch(r"round-(\d+)", path.name) for path in run_dir.glob("round-*")]
    return max((int(name[1]) for name in names if name), default=0)


def log_files(run_dir: Path, job: str | None = None, task: str | None = None) -> list[Path]:
    """Return log files, oldest first; of one job, or of one task of its array."""
    files = [path for path in (run_dir / LOGS).glob("*.log") if _is_of(path.stem, job, task)]
    return sorted(files, key=lambda path: path.stat().st_mtime)


def _is_of(stem: str, job: str | None, task: str | None) -> bool:
    """Logs are called KIND-JOB.log or KIND-ARRAY_TASK.log."""
    if job is None:
        return True
    found, _, index = stem.rpartition("-")[2].partition("_")
    return found == job and (task is None or index == task)


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log; of a progress bar only what is seen last."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    shown = [line.rpartition("\r")[2] if line else line for line in text.split("\n")]
    while shown and not shown[-1]:
        shown.pop()
    return shown[-lines:]

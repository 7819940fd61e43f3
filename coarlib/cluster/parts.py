"""Which part of the rows is this job's, said outright or by the job system that started it.

Every array of jobs numbers its members somewhere in the environment. They are asked only on
request (``auto``): a variable that was left over must not change what a command does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from coarlib.errors import ClusterError

__all__ = ["part_of"]

# Job system: which variable counts its members from 0, and which says how many there are.
INDICES = {
    "Kubernetes": ("JOB_COMPLETION_INDEX", None),
    "AWS Batch": ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    "SkyPilot": ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    "SLURM": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
}
PART = re.compile(r"(auto|\d+)(?:/(\d+))?")


def part_of(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return which part of how many a job does, the first being part 0.

    Parameters
    ----------
    text : str
        ``I/N``, or ``auto/N`` to take I from the job system, or ``auto`` to take both.
    environment : mapping
        Environment variables.

    Raises
    ------
    ClusterError
        If that is no part, or the environment does not say which.
    """
    match = PART.fullmatch(text)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise ClusterError(f"a part is I/N with I from 0 to N - 1, auto/N, or auto, not {text!r}")
    if match[1] == "auto":
        index, count = _from_environment(match[2], environment)
    else:
        index, count = int(match[1]), int(match[2])
    if index >= count:
        raise ClusterError(
            f"there is no part {index} of {count}: parts are numbered from 0 to {count - 1}"
        )
    return index, count


def _from_environment(count: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    found = {
        name: environment[index] for name, (index, _) in INDICES.items() if index in environment
    }
    if not found:
        names = ", ".join(index for index, _ in INDICES.values())
        raise ClusterError(f"part auto asks the job system, but none of {names} is set")
    if len(set(found.values())) > 1:
        said = ", ".join(f"{INDICES[name][0]}={value}" for name, value in found.items())
        raise ClusterError(f"part auto is ambiguous: {said}; give the part as I/N")
    name = next(iter(found))
    variable, size = INDICES[name]
    index = _number(variable, environment)
    if count is not None:
        return index, int(count)
    if size is None or size not in environment:
        raise ClusterError(f"{name} does not say how many parts there are: give auto/N")
    if name == "SLURM":
        index = _place_in_slurm_array(index, environment)
    return index, _number(size, environment)


def _place_in_slurm_array(index: int, environment: Mapping[str, str]) -> int:
    """Return a task's place in an array that may begin anywhere; one with gaps has no places."""
    first = _number("SLURM_ARRAY_TASK_MIN", environment)
    last = _number("SLURM_ARRAY_TASK_MAX", environment)
    count = _number("SLURM_ARRAY_TASK_COUNT", environment)
    if last - first + 1 != count:
        raise ClusterError(
            f"the SLURM array has {count} tasks between {first} and {last}, so their number is not "
            "the number of parts: give auto/N"
        )
    return index - first


def _number(variable: str, environment: Mapping[str, str]) -> int:
    text = environment.get(variable, "")
    if not re.fullmatch(r"\d+", text):
        raise ClusterError(f"{variable} must be a whole number, not {text!r}")
    return int(text)

"""Submitting in rounds: an array over what is missing, then a job that verifies and decides.

A round is a directory ``STORE.jobs/round-N`` of plain scripts with a ``submit.sh`` that hands them
to sbatch. The verify job of a round repairs torn rows; it writes the next round for the blocks
that are still missing, as long as tries are left, or the steps (fit, score, report) once the store
is complete, and its batch script runs that ``submit.sh``. So Python need not be where sbatch is
(a container), and every decision rests on the store alone, not on what SLURM says of its jobs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coarlib.cluster.plan import Plan
from coarlib.cluster.record import JOBS_FILE, LOGS, PLAN_FILE
from coarlib.cluster.scripts import (
    EXIT_COMPLETE,
    EXIT_RESUBMIT,
    Blocks,
    fill_script,
    step_script,
    verify_script,
)
from coarlib.errors import ClusterError
from coarlib.files import whole_file
from coarlib.store import Store
from coarlib.store.status import ranges
from coarlib.store.verify import verify

__all__ = ["Decision", "decide", "missing_blocks", "round_scripts", "step_scripts", "write_scripts"]

SUBMIT = "submit.sh"
SUBMIT_HEAD = """#!/bin/bash
# Submits what lies beside it, once: `submitted` says that it was done.
set -euo pipefail
RUN={run}
cd "$RUN/{name}"
mkdir submitted 2>/dev/null || {{
  echo "$PWD was submitted before"
  exit 0
}}
trap '[ $? = 0 ] || rmdir submitted' EXIT
verify=${{SLURM_JOB_ID:-}} # the verify job that runs this, if one does
for variable in $(compgen -e SLURM_); do # the jobs must not inherit its variables
  [ "$variable" = SLURM_CONF ] || unset "$variable"
done
submit() {{ # KIND SCRIPT [OPTION …]: prints the job id
  local job kind=$1 script=$2
  shift 2
  job=$(sbatch --parsable "$@" "$script") || exit
  job=${{job%%;*}} # federations add the cluster's name
  echo '{{"job": "'"$job"'", "kind": "'"$kind"'", "round": {number}}}' >>"$RUN/{jobs}"
  echo "submitted $script as job $job $*" >&2
  echo "$job"
}}
"""


def missing_blocks(plan: Plan, store: Store) -> list[int]:
    """Return the blocks (array tasks) of ``plan`` that have rows to fill, ascending."""
    missing = np.flatnonzero(~store.completed())
    return np.unique(missing // plan.rows_per_job).tolist()


def split_blocks(blocks: list[int], max_array: int) -> list[Blocks]:
    """Write blocks as sbatch's array indices, in as many arrays as the cluster's limit asks for."""
    found = []
    for chunk in sorted({block // max_array for block in blocks}):
        offset = chunk * max_array
        here = np.array([b - offset for b in blocks if b // max_array == chunk], np.int64)
        runs = ranges(here)
        words = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in runs]
        found.append(Blocks(",".join(words), offset))
    return found


def round_scripts(
    plan: Plan,
    num_models: int,
    blocks: list[int],
    number: int,
    *,
    max_array: int,
    tries_left: int = 0,
) -> dict[str, str]:
    """Return {file name: content} of round ``number``: arrays over ``blocks``, and its verify job.

    Parameters
    ----------
    max_array : int
        The cluster's MaxArraySize.
    tries_left : int
        How many more rounds the verify job may submit.
    """
    arrays = split_blocks(blocks, max_array)
    concurrent = plan.concurrent_jobs
    if concurrent is not None:
        concurrent = max(1, concurrent // max(1, len(arrays)))
    run_dir, scripts, after = plan.run_path, {}, []
    lines = [_submit_head(run_dir, f"round-{number}", number)]
    for index, array in enumerate(arrays):
        name = "fill.sbatch" if len(arrays) == 1 else f"fill-{index}.sbatch"
        log = _log(run_dir, "fill-%A_%a.log")
        scripts[name] = fill_script(plan, num_models, array, log, concurrent)
        lines.append(f"fill_{index}=$(submit fill {name})")
        after.append(f"$fill_{index}")
    log = _log(run_dir, "verify-%j.log")
    scripts["verify.sbatch"] = verify_script(
        plan, number, tries_left=tries_left, max_array=max_array, log=log
    )
    # afterany: an array with one failed task would keep afterok waiting for ever.
    dependency = f' --dependency="afterany:{":".join(after)}"' if after else ""
    lines.append(f"submit verify verify.sbatch{dependency} >/dev/null\n")
    return {**scripts, SUBMIT: "\n".join(lines)}


def step_scripts(plan: Plan, number: int) -> dict[str, str]:
    """Return {file name: content} of the steps that follow a complete store; {} if there are none.

    The first depends on the verify job that submits it, each other one on the one before.
    """
    if not plan.then:
        return {}
    run_dir, scripts = plan.run_path, {}
    lines = [_submit_head(run_dir, f"then-{number}", number)]
    lines.append('after=(${verify:+"--dependency=afterok:$verify"})')
    for step in plan.then:
        file = f"{step.name}.sbatch"
        pattern = f"{step.name}-%A_%a.log" if step.array > 1 else f"{step.name}-%j.log"
        scripts[file] = step_script(plan, step, _log(run_dir, pattern))
        options = '--kill-on-invalid-dep=yes ${after[@]+"${after[@]}"}'
        lines.append(f"job=$(submit {step.name} {file} {options})")
        # A step after an array looks for itself whether every part is there.
        kind = "afterany" if step.array > 1 else "afterok"
        lines.append(f'after=("--dependency={kind}:$job")')
    return {**scripts, SUBMIT: "\n".join([*lines, ""])}


def _log(run_dir: Path, pattern: str) -> str:
    """Return where a job's output goes, as sbatch reads it: a % of the path is no pattern."""
    return f"{str(run_dir / LOGS).replace('%', '%%')}/{pattern}"


def _submit_head(run_dir: Path, name: str, number: int) -> str:
    return SUBMIT_HEAD.format(
        run=shlex.quote(str(run_dir)), name=name, number=number, jobs=JOBS_FILE
    )


def write_scripts(plan: Plan, name: str, scripts: Mapping[str, str]) -> Path:
    """Write the scripts of a round (or of the steps) to its directory and return it.

    ``submit.sh`` comes last, so that a directory that has one is whole.
    """
    directory = plan.run_path / name
    try:
        (plan.run_path / LOGS).mkdir(parents=True, exist_ok=True)
        directory.mkdir(exist_ok=True)
        _write(plan.run_path / PLAN_FILE, plan.as_yaml())
        for file, content in scripts.items():
            _write(directory / file, content)
    except OSError as error:
        raise ClusterError(f"cannot write {directory}: {error.strerror}") from error
    return directory


def _write(path: Path, content: str) -> None:
    with whole_file(path, "w") as file:
        file.write(content)


@dataclass(frozen=True)
class Decision:
    """What a verify job found and prepared.

    Attributes
    ----------
    exit_code : int
        Tells the batch script what to submit.
    message : str
        The same for people.
    """

    exit_code: int
    message: str


def decide(plan: Plan, number: int, *, tries_left: int, max_array: int) -> Decision:
    """Verify the store after round ``number``, repair torn rows, and prepare what follows.

    Raises
    ------
    ClusterError
        If rows are missing and no try is left.
    """
    store, message = verified(plan)
    blocks = missing_blocks(plan, store)
    if not blocks:
        scripts = step_scripts(plan, number)
        if scripts:
            write_scripts(plan, f"then-{number}", scripts)
        steps = ", ".join(step.name for step in plan.then) or "nothing"
        return Decision(EXIT_COMPLETE, f"{message}; the store is complete, {steps} follows")
    missing = np.flatnonzero(~store.completed())
    if tries_left < 1:
        shown = ", ".join(f"{a} to {b - 1}" for a, b in ranges(missing)[:8])
        raise ClusterError(
            f"{message}; {len(missing)} rows are still missing after the last of {plan.tries} "
            f"tries ({shown}): the logs of {store.path} show why, and resuming "
            "tries again"
        )
    scripts = round_scripts(
        plan,
        store.num_models,
        blocks,
        number + 1,
        max_array=max_array,
        tries_left=tries_left - 1,
    )
    write_scripts(plan, f"round-{number + 1}", scripts)
    return Decision(
        EXIT_RESUBMIT,
        f"{message}; {len(missing)} rows are missing, submitting their {len(blocks)} blocks again",
    )


def verified(plan: Plan) -> tuple[Store, str]:
    """Verify and repair the store of ``plan``; returns it with what was found, in words."""
    store = Store.open(plan.store_path)
    report = verify(store, repair=True)
    message = f"{report.checked} rows verified"
    if report.torn:
        message += f", {len(report.torn)} torn and withdrawn"
    return store, message

"""Submitting a plan: the first time, again for what is missing, or only on paper."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from coarlib.cluster.plan import Plan
from coarlib.cluster.queue import DEFAULT_MAX_ARRAY, cancel, max_array_size, slurm_is_here, tasks_of
from coarlib.cluster.record import last_round, read_jobs
from coarlib.cluster.rounds import (
    SUBMIT,
    missing_blocks,
    round_scripts,
    step_scripts,
    write_scripts,
)
from coarlib.errors import ClusterError
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec

__all__ = ["check_resumable", "open_store", "placed", "scripts_on_paper", "submit"]


def placed(plan: Plan, directory: Path) -> Plan:
    """Settle what a plan leaves open: where it runs, and with which Python."""
    environment = plan.environment
    if environment.python is None and environment.container is None:
        environment = replace(environment, python=sys.executable)
    return replace(plan, directory=str(directory / plan.directory), environment=environment)


def open_store(plan: Plan) -> Store:
    """Open the plan's store, initialised first where its spec is given and it does not exist."""
    if plan.spec is not None:
        initialize(plan.store_path, load_spec(Path(plan.directory, plan.spec)))
    return Store.open(plan.store_path)


def check_resumable(plan: Plan, resume: bool) -> int:
    """Return the number of the next round.

    Raises
    ------
    ClusterError
        If the plan was submitted before and ``resume`` is not set, or jobs of it are still live.
    """
    number = last_round(plan.run_path)
    if number and not resume:
        raise ClusterError(
            f"{plan.store} was submitted before ({plan.run_path}); resume submits the rows that "
            "are still missing"
        )
    jobs = [job.job for job in read_jobs(plan.run_path)]
    live = sorted({task.job for task in tasks_of(jobs) if task.live}) if slurm_is_here() else []
    if live:
        raise ClusterError(
            f"jobs {', '.join(live[:6])} of {plan.store} are still in the queue; wait for them, or "
            f"end them by: coar cancel {plan.store}"
        )
    return number + 1


def submit(plan: Plan, number: int) -> str:
    """Hand round ``number`` to sbatch; returns what was submitted, in words.

    Where nothing is missing, the steps are submitted at once.

    Raises
    ------
    ClusterError
        If sbatch refuses (its reason is in the message).
    """
    store = Store.open(plan.store_path)
    blocks = missing_blocks(plan, store)
    if blocks:
        scripts = round_scripts(
            plan,
            store.num_models,
            blocks,
            number,
            max_array=max_array_size(),
            tries_left=plan.tries - 1,
        )
        name = f"round-{number}"
    else:
        scripts, name = step_scripts(plan, number), f"then-{number}"
        if not scripts:
            return f"{store.path} is complete and the plan has no steps after that"
    directory = write_scripts(plan, name, scripts)
    result = subprocess.run(
        ["bash", str(directory / SUBMIT)],
        capture_output=True,
        text=True,
        check=False,
        env=_outside_of_jobs(),
    )
    if result.returncode:
        cancel([job.job for job in read_jobs(plan.run_path) if job.round == number])
        shutil.rmtree(directory, ignore_errors=True)
        reason = " ".join(result.stderr.split())
        raise ClusterError(f"sbatch refused {plan.name}: {reason}")
    return f"{len(blocks)} blocks of {store.path} to fill\n{result.stderr.strip()}"


def _outside_of_jobs() -> dict[str, str]:
    """Return the environment without what an interactive SLURM job would hand down to sbatch."""
    kept = ("SLURM_CONF",)
    return {k: v for k, v in os.environ.items() if k in kept or not k.startswith("SLURM_")}


def scripts_on_paper(plan: Plan) -> Mapping[str, str]:
    """Return {path: content} of all that :func:`submit` would write, without touching anything."""
    number = last_round(plan.run_path) + 1
    try:
        max_array = max_array_size()
    except ClusterError:  # no SLURM here
        max_array = DEFAULT_MAX_ARRAY
    if plan.store_path.exists():
        store = Store.open(plan.store_path)
        blocks, num_models = missing_blocks(plan, store), store.num_models
    elif plan.spec is not None:
        num_models = load_spec(Path(plan.directory, plan.spec)).num_models
        blocks = list(range(plan.num_blocks(num_models)))
    else:
        raise ClusterError(
            f"{plan.store_path} does not exist; give the plan a spec to make it from"
        )
    run = plan.run_path
    fill = round_scripts(
        plan, num_models, blocks, number, max_array=max_array, tries_left=plan.tries - 1
    )
    found = {str(run / f"round-{number}" / name): text for name, text in fill.items()}
    for name, text in step_scripts(plan, number).items():
        found[str(run / f"then-{number}" / name)] = text
    return found

"""The same plan as processes on this machine: the same scripts, run by bash instead of SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coarlib.cluster.plan import Plan
from coarlib.cluster.record import LOGS, tail
from coarlib.cluster.rounds import (
    missing_blocks,
    round_scripts,
    step_scripts,
    verified,
    write_scripts,
)
from coarlib.errors import ClusterError
from coarlib.filling.stopping import StopSignals
from coarlib.progress import Progress

__all__ = ["run_local"]

SECONDS_BETWEEN_LOOKS = 0.05
LINES_OF_ERROR = 5


def run_local(plan: Plan, processes: int, number: int, say: Callable[[str], None] = print) -> bool:
    """Fill the store by ``processes`` jobs at a time, verify it, retry, and run the steps.

    Parameters
    ----------
    plan : Plan
    processes : int
        Jobs at once; each starts ``plan.workers_per_job`` workers.
    number : int
        Number of the first round.
    say : callable
        Receives a line of progress for people.

    Returns
    -------
    bool
        False if a signal stopped it before the end; what is committed stays.

    Raises
    ------
    ClusterError
        If rows are missing after the last try, or a step fails.
    """
    failures: list[str] = []
    store, message = verified(plan)
    plan = replace(plan, resources=replace(plan.resources, nodes=1))  # srun needs SLURM
    with StopSignals() as stop:
        for attempt in range(plan.tries):
            blocks = missing_blocks(plan, store)
            if not blocks:
                break
            say(f"filling {len(blocks)} blocks of {store.path} by {processes} processes")
            scripts = round_scripts(
                plan, store.num_models, blocks, number + attempt, max_array=max(blocks) + 1
            )
            write_scripts(plan, f"round-{number + attempt}", scripts)
            failures = _fill(plan, blocks, processes, number + attempt, stop)
            if stop.requested:
                return False
            store, message = verified(plan)
        if missing_blocks(plan, store):
            missing = store.num_models - len(store.completed_rows())
            shown = f"; the last error was: {failures[-1]}" if failures else ""
            raise ClusterError(
                f"{missing} rows of {store.path} are still missing after {plan.tries} tries{shown}"
            )
        say(f"{message}; the store is complete")
        return _run_steps(plan, number, stop, say)


def _fill(
    plan: Plan, blocks: list[int], processes: int, number: int, stop: StopSignals
) -> list[str]:
    """Run one round's blocks; returns the errors of those that failed."""
    script = plan.run_path / f"round-{number}" / "fill.sbatch"
    waiting, failures, warned = list(blocks), list[str](), False
    running: dict[int, subprocess.Popen[bytes]] = {}
    with Progress(len(blocks), f"filling {plan.store_path.name}", unit="block") as progress:
        while (waiting and not stop.requested) or running:
            while waiting and len(running) < processes and not stop.requested:
                block = waiting.pop(0)
                running[block] = _start(plan, script, block, _log(plan, "fill", number, block))
            if stop.requested and not warned:
                warned = True
                for process in running.values():
                    process.send_signal(signal.SIGUSR1)  # as SLURM would before a time limit
            for block, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[block]
                progress.advance()
                if process.returncode and not stop.requested:
                    log = _log(plan, "fill", number, block)
                    failures.append(f"{' '.join(tail(log, LINES_OF_ERROR))} ({log})")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return failures


def _start(plan: Plan, script: Path, index: int, log: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment["SLURM_ARRAY_TASK_ID"] = str(index)
    with open(log, "ab") as output:
        return subprocess.Popen(
            ["bash", str(script)],
            cwd=plan.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the jobs as a warning, from here
        )


def _log(plan: Plan, kind: str, number: int, index: int) -> Path:
    return plan.run_path / LOGS / f"{kind}-local{number}_{index}.log"


def _run_steps(plan: Plan, number: int, stop: StopSignals, say: Callable[[str], None]) -> bool:
    scripts = step_scripts(plan, number)
    if not scripts:
        return True
    directory = write_scripts(plan, f"then-{number}", scripts)
    for step in plan.then:
        for index in range(step.array):
            log = _log(plan, step.name, number, index)
            process = _start(plan, directory / f"{step.name}.sbatch", index, log)
            while process.poll() is None:
                if stop.requested:
                    process.terminate()
                    process.wait()
                    return False
                time.sleep(SECONDS_BETWEEN_LOOKS)
            if process.returncode:
                last = " ".join(tail(log, LINES_OF_ERROR))
                raise ClusterError(f"the step {step.name} failed: {last} ({log})")
        said = [line for line in tail(log, 2) if not line.startswith("next: ")]
        say(f"{step.name}: {(said or ['done'])[-1]}")
    return True

"""Submitting a plan's blocks through submitit, for those who drive clusters from Python.

    executor = submitit.AutoExecutor(folder="logs")
    executor.update_parameters(timeout_min=60, slurm_partition="gpu", slurm_array_parallelism=64)
    jobs = map_blocks(plan, executor)

submitit requeues only callables that have ``checkpoint``, at most three times, and acts on USR2
alone; whatever it leaves undone, ``map_blocks`` submits again when it is called again.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coarlib.cluster.plan import Plan
from coarlib.cluster.record import last_round
from coarlib.cluster.rounds import missing_blocks, round_scripts, write_scripts
from coarlib.errors import ClusterError
from coarlib.store import Store

__all__ = ["FillBlock", "map_blocks"]


@dataclass(frozen=True)
class FillBlock:
    """Fills one block by the plan's own batch script; what submitit pickles and calls."""

    script: str
    block: int

    def __call__(self) -> int:
        """Run the script; returns the block, or raises ClusterError with the exit code."""
        # Without SLURM's variables the script leaves requeueing to submitit.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment["SLURM_ARRAY_TASK_ID"] = str(self.block)
        code = subprocess.run(["bash", self.script], env=environment, check=False).returncode
        if code:
            raise ClusterError(f"block {self.block} ended with exit code {code}; see its log")
        return self.block

    def checkpoint(self) -> Any:
        """Be requeued as it is: rows that are committed are skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def map_blocks(plan: Plan, executor: Any) -> list[Any]:
    """Submit every block that has rows to fill as one array of ``executor``.

    Parameters
    ----------
    plan : Plan
        Its resources are not used: the executor has its own (``update_parameters``).
    executor : submitit.Executor

    Returns
    -------
    list of submitit.Job
        One a block, in the order of the rows; empty if nothing is missing.
    """
    store = Store.open(plan.store_path)
    blocks = missing_blocks(plan, store)
    if not blocks:
        return []
    number = last_round(plan.run_path) + 1
    scripts = round_scripts(plan, store.num_models, blocks, number, max_array=max(blocks) + 1)
    directory = write_scripts(plan, f"round-{number}", {"fill.sbatch": scripts["fill.sbatch"]})
    script = str(Path(directory, "fill.sbatch"))
    return list(executor.submit_array([FillBlock(script, block) for block in blocks]))

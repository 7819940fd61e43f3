"""End all jobs of a store that are still in the queue; what is committed stays.

coar cancel STORE
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.cluster.overview import live_jobs
from coarlib.cluster.queue import cancel
from coarlib.cluster.record import run_directory
from coarlib.commandline import Param, parse, run

POSITIONAL = {"store": Param(str, "the store, or the plan that was submitted", required=True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Cancel the jobs of the store that the arguments name."""
    args = parse(__doc__ or "", {}, argv, positional=POSITIONAL)
    run_dir = run_directory(args.store)
    jobs = live_jobs(run_dir)
    # A verify job may have submitted more while it was being cancelled: look again.
    while jobs:
        cancel(jobs)
        print(f"cancelled {', '.join(jobs)}")
        jobs = [job for job in live_jobs(run_dir) if job not in jobs]
    print(f"no other job of {run_dir} is in the queue")


if __name__ == "__main__":
    run(main)

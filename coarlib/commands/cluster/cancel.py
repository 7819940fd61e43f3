"""End all jobs of a store that are still in the queue; what is committed stays.

coar cancel STORE
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from coarlib.cluster.overview import live_jobs
from coarlib.cluster.queue import cancel
from coarlib.cluster.record import run_directory
from coarlib.commands import common
from coarlib.commands.arguments import Command, run
from coarlib.commands.leaving import next_step

SECONDS_TO_END = 60.0
SECONDS_BETWEEN_LOOKS = 0.5
COMMAND = Command(
    "cancel", __doc__, {"store": common.store("the store, or the plan that was submitted")}
)


def main(argv: Sequence[str] | None = None) -> None:
    """Cancel the jobs of the store that the arguments name."""
    args = COMMAND.parse(argv)
    run_dir = run_directory(args.store)
    ended: set[str] = set()
    deadline = time.monotonic() + SECONDS_TO_END
    # A verify job may submit more while it is being cancelled, so look again; workers that are
    # told to end finish the rows in hand.
    while jobs := live_jobs(run_dir):
        new = [job for job in jobs if job not in ended]
        if new:
            cancel(new)
            ended.update(new)
            print(f"cancelled {', '.join(new)}", flush=True)
        elif time.monotonic() > deadline:
            print(f"{', '.join(jobs)} have not ended yet")
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    else:
        print(f"no other job of {run_dir} is in the queue")
    print(next_step("status", args.store))


if __name__ == "__main__":
    run(main)

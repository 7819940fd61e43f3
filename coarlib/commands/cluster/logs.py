"""Show the last lines of the logs of a store's jobs, newest last.

    coar logs STORE [--job 1234_5] [--failed] [--lines 20] [--files 5]

Without --job, the logs written last; with --failed, only those of jobs that ended badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.cluster.overview import overview
from coarlib.cluster.record import log_files, run_directory, tail
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import next_step
from coarlib.errors import ClusterError, printable

COMMAND = Command(
    "logs",
    __doc__,
    {
        "store": common.store("the store, or the plan that was submitted"),
        "job": Param(str, "a job, or one task of an array: 1234 or 1234_5"),
        "failed": common.flag("only jobs that ended badly"),
        "lines": Param(Whole(1), "lines of each log", default=20),
        "files": Param(Whole(1), "how many logs", default=5),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the logs that the arguments name."""
    args = COMMAND.parse(argv)
    run_dir = run_directory(args.store)
    files = _failed(run_dir) if args.failed else _of_job(run_dir, args.job)
    if not files:
        what = "job ended badly" if args.failed else f"log of job {args.job or 'any'} yet"
        print(f"no {what} in {run_dir}")
    for file in files[-args.files :]:
        print(f"==> {file}")
        print("\n".join(map(printable, tail(file, args.lines))))
    print(next_step("status", args.store))


def _of_job(run_dir: Path, name: str | None) -> list[Path]:
    job, _, task = (name or "").partition("_")
    return log_files(run_dir, job or None, task or None)


def _failed(run_dir: Path) -> list[Path]:
    found = overview(run_dir)
    if found is None or found.problem is not None:
        raise ClusterError(
            f"the queue cannot say which jobs of {run_dir} failed"
            + (f": {found.problem}" if found is not None else "")
        )
    files = [Path(failure.log) for failure in found.failed if failure.log is not None]
    return list(reversed(files))


if __name__ == "__main__":
    run(main)

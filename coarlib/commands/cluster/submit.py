"""Fill a store on a SLURM cluster, verify it, retry what is missing, then fit and score.

    coar submit PLAN.yaml              submit the array, its verify job, and what follows
    coar submit PLAN.yaml --dry-run    print the exact sbatch scripts, touch nothing
    coar submit PLAN.yaml --local 4    run the same plan as 4 processes on this machine
    coar submit PLAN.yaml --resume     submit only the rows that are still missing

docs/cluster.md describes the plan. Scripts, logs and the record of jobs are kept in STORE.jobs.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.cluster.local import run_local
from coarlib.cluster.plan import Plan, load_plan
from coarlib.cluster.rounds import decide
from coarlib.cluster.scripts import is_task
from coarlib.cluster.submission import (
    check_resumable,
    open_store,
    placed,
    scripts_on_paper,
    submit,
)
from coarlib.commands import common
from coarlib.commands.__main__ import load
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import again, next_step
from coarlib.errors import ArgumentError, ClusterError, CoarlibError, nearest
from coarlib.filling.stopping import EXIT_STOPPED
from coarlib.loading import load_text
from coarlib.setups import names

PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
COMMAND = Command(
    "submit",
    __doc__,
    {
        "plan": common.store("the plan, a YAML file"),
        "dry_run": common.flag("print the scripts, touch nothing"),
        "local": Param(Whole(1), "run here, by so many processes"),
        "resume": common.flag("submit what an earlier submission left missing"),
        "verify_round": Param(Whole(1), "what a verify job runs: verify, prepare what follows"),
        "tries_left": Param(Whole(0), "rounds that this verify job may still submit", default=0),
        "max_array": Param(Whole(1), "the cluster's MaxArraySize", default=1001),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Submit, run or print the plan that the arguments name."""
    args = COMMAND.parse(argv)
    if args.dry_run and args.local is not None:
        raise ArgumentError("--dry-run and --local contradict each other")
    plan = placed(load_plan(args.plan), Path.cwd())
    if args.verify_round is not None:
        decision = decide(
            plan,
            args.verify_round,
            tries_left=args.tries_left,
            max_array=args.max_array,
        )
        print(decision.message)
        sys.exit(decision.exit_code)
    _check_worker(plan)
    _check_steps(plan)
    if args.dry_run:
        for path, content in scripts_on_paper(plan).items():
            print(f"# ----- {path}\n{content}")
        print(again(args), file=sys.stderr)
        return
    number = check_resumable(plan, resume=args.resume or args.local is not None)
    open_store(plan)
    if args.local is not None:
        _run_here(plan, args.local, number)
        print(next_step("report", plan.store))
    else:
        print(submit(plan, number))
        print(f"coar cancel {plan.store} ends it")
        print(next_step("status", plan.store))


def _check_steps(plan: Plan) -> None:
    """Parse the commands of ``then`` now: a wrong word must not wait for the end of the fill."""
    for step in plan.then:
        name, *words = (word.replace("{index}", "0") for word in step.run)
        if unknown := PLACEHOLDER.search(" ".join([name, *words])):
            raise ClusterError(
                f"then: {step.name}: {unknown[0]} stands for nothing; only {{index}}, the number "
                "of a copy, is replaced"
            )
        if "." in name.removeprefix("estimate."):
            continue  # a module of the user's own
        try:
            load(name.removeprefix("estimate.")).COMMAND.parse(words)
        except CoarlibError as error:
            raise ClusterError(f"then: {step.name}: {error}") from error


def _check_worker(plan: Plan) -> None:
    """Look at the worker's task and arguments now; what an array would fail of, one sentence.

    A task's file is read, not run; with an interpreter or container of its own, the plan may name
    modules that are not here.
    """
    place, _, wanted = plan.task.partition(":")
    here = plan.environment.container is None and plan.environment.python in (None, sys.executable)
    if here and place.endswith(".py"):
        _check_defines(Path(plan.directory, place), wanted)
    elif here and place not in names() and not _is_module(place):
        raise ClusterError(f"there is no set-up or module {place}{nearest(place, names())}")
    if is_task(plan.task):
        words = [str(plan.store), "--task", plan.task]
        if plan.task_args:
            words += ["--set", json.dumps(plan.task_args)]
        for key, value in plan.worker_args.items():
            words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        try:
            load("make_dataset").COMMAND.parse(words)
        except CoarlibError as error:
            raise ClusterError(f"task_args or worker_args: {error}") from error


def _check_defines(file: Path, name: str) -> None:
    text = load_text(file, ClusterError)
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    if name and name not in words:
        raise ClusterError(f"{file} defines no {name}{nearest(name, words)}")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _run_here(plan: Plan, processes: int, number: int) -> None:
    if not run_local(plan, processes, number):
        print("stopped by a signal; run the same command for the rest", file=sys.stderr)
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    run(main)

"""A plan as plain sbatch scripts: what a person would write, and can read, run and change.

Facts that shaped them: the warning signal goes to the batch shell only, which passes it on; SLURM
requeues preempted jobs and those of dead nodes, but not those that time out; ``scontrol requeue
$SLURM_JOB_ID`` in an array's last element requeues the whole array, ``ARRAY_TASK`` only the one;
``afterok`` on an array with one failed element waits forever.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coarlib.cluster.plan import Environment, Plan, Resources, Step
from coarlib.filling.stopping import EXIT_ABANDONED, EXIT_STOPPED
from coarlib.setups import names

__all__ = ["Blocks", "fill_script", "multi_line", "step_script", "verify_script"]

# Exit codes of ``coar submit --verify_round``: what the batch script does next.
EXIT_COMPLETE = 0
EXIT_RESUBMIT = 3
MAX_REQUEUES = 20
PARTITION = '--num_partitions "$partitions" --partition_index'


@dataclass(frozen=True)
class Blocks:
    """Array tasks ``indices`` (as sbatch writes them), counted from block ``offset``."""

    indices: str
    offset: int = 0


def fill_script(
    plan: Plan, num_models: int, blocks: Blocks, log: str, concurrent: int | None = None
) -> str:
    """Return the array job that fills ``blocks``; task i of the array fills block offset + i.

    Parameters
    ----------
    plan : Plan
    num_models : int
        Rows of the store.
    blocks : Blocks
    log : str
        Where the output goes, in sbatch's pattern.
    concurrent : int, optional
        At most so many tasks at once.
    """
    limit = f"%{concurrent}" if concurrent else ""
    head = _head(
        f"{plan.name}-fill",
        plan.resources,
        log,
        [
            f"--array={blocks.indices}{limit}",
            f"--ntasks-per-node={plan.workers_per_job}",
            f"--signal=B:USR1@{plan.warn_seconds}",
        ],
    )
    rows = f"""
STORE={shlex.quote(plan.store)}
NUM_MODELS={num_models}  # rows of the store
ROWS_PER_JOB={plan.rows_per_job}  # task i fills rows i * ROWS_PER_JOB and up
BLOCK_OFFSET={blocks.offset}  # where array index 0 begins; larger stores need several arrays
NODES={plan.resources.nodes}
WORKERS={plan.workers_per_job}  # on each node

block=$((BLOCK_OFFSET + SLURM_ARRAY_TASK_ID))
first=$((block * ROWS_PER_JOB))
last=$((first + ROWS_PER_JOB))
[ "$last" -le "$NUM_MODELS" ] || last=$NUM_MODELS
partitions=$((WORKERS * NODES))
echo "rows $first to $((last - 1)) of $STORE, $partitions workers, try ${{SLURM_RESTART_COUNT:-0}}"
"""
    start = _start_on_nodes(plan) if plan.resources.nodes > 1 else _start_here(plan)
    return "\n".join([head, "set -uo pipefail", _setup(plan, plan.resources), rows, start, _AWAIT])


def _start_here(plan: Plan) -> str:
    command = _worker_command(plan, _python(plan.environment, plan.resources))
    return f"""worker() {{
  exec {command} \\
    {PARTITION} "$1"
}}
workers=()
for part in $(seq 0 $((partitions - 1))); do
  worker "$part" &
  workers+=($!)
done
"""


def _start_on_nodes(plan: Plan) -> str:
    """One srun starts the workers of all nodes and passes signals on to them."""
    environment, resources = plan.environment, plan.resources
    python = [environment.python or "python"]
    options = ["--ntasks=$partitions", '--ntasks-per-node="$WORKERS"']
    options += [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=0"]
    if environment.runtime == "pyxis":
        options += _pyxis(environment)
    else:
        python = _python(environment, resources)
    command = _worker_command(plan, python)
    return f"""worker() {{
  exec {command} \\
    {PARTITION} "$SLURM_PROCID"
}}
export STORE first last partitions
export -f worker
srun {" ".join(options)} \\
  bash -c worker &
workers=($!)
"""


def _worker_command(plan: Plan, python: Sequence[str]) -> str:
    """Return the command of a worker, but for its part of the rows."""
    lines = [" ".join([*python, "-u", "-m", *_worker_module(plan)])]
    lines.append('"$STORE" --rows "$first:$last"')
    arguments = dict(plan.worker_args)
    if is_task(plan.task) and plan.task_args:
        arguments["set"] = json.dumps(plan.task_args)
    elif not is_task(plan.task):
        arguments |= plan.task_args
    lines += [f"--{key} {_quoted(value)}" for key, value in arguments.items()]
    return multi_line(lines)


def _worker_module(plan: Plan) -> list[str]:
    if is_task(plan.task):
        return ["coarlib", "make_dataset", "--task", shlex.quote(plan.task)]
    return [shlex.quote(plan.task)]


def is_task(name: str) -> bool:
    """Whether ``name`` is a task, rather than a set-up's module with a worker of its own."""
    return ":" in name or name.endswith(".py") or name in names()


# After the workers are started: pass signals on, wait, requeue what was stopped before its end.
_AWAIT = f"""# A warning (time limit near, or preemption) lets the workers finish the rows in hand.
warned=0
pass_on() {{
  interrupted=1
  [ "$warned" = 1 ] || kill -USR1 "${{workers[@]}}" 2>/dev/null # a second one would drop the rows
  warned=1
}}
trap pass_on USR1 TERM

await() {{
  local code
  while :; do
    interrupted=0
    wait "$1"
    code=$?
    [ "$interrupted" = 1 ] || break # wait returned for the signal, not for the worker
  done
  # Warned before it could listen (138, 143), or gone while we handled the signal (127).
  case $warned$code in 1127 | 1138 | 1143) code={EXIT_STOPPED} ;; esac
  return "$code"
}}

failed=0 stopped=0
for pid in "${{workers[@]}}"; do
  await "$pid"
  code=$?
  case $code in
    0) ;;
    {EXIT_STOPPED} | {EXIT_ABANDONED}) stopped=$code ;;
    *) failed=$code ;;
  esac
done

me=${{SLURM_JOB_ID:-}}
# The id of an array's last element is the array's: name the element.
[ -z "${{SLURM_ARRAY_JOB_ID:-}}" ] || me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
if [ "$stopped" != 0 ] && [ -n "$me" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ] &&
  [ "$(squeue -h -j "$me" -o %T)" = RUNNING ]; then # a cancelled job stays cancelled
  echo "stopped before the end: requeueing $me"
  scontrol requeue "$me"
fi
[ "$failed" = 0 ] || exit "$failed"
exit "$stopped"
"""


def verify_script(
    plan: Plan, round_number: int, *, tries_left: int, max_array: int, log: str
) -> str:
    """Return the job that verifies the store after ``round_number`` and decides what follows."""
    resources = Resources(
        time="01:00:00",
        partition=plan.resources.partition,
        account=plan.resources.account,
        qos=plan.resources.qos,
    )
    python = " ".join(_python(plan.environment, resources))
    body = f"""
RUN={shlex.quote(str(plan.run_path))}
{python} -u -m coarlib.commands.cluster.submit "$RUN/plan.yaml" \\
  --verify_round {round_number} --tries_left {tries_left} --max_array {max_array}
code=$?
case $code in
  {EXIT_COMPLETE}) next=then-{round_number} ;;
  {EXIT_RESUBMIT}) next=round-{round_number + 1} ;;
  *) exit $code ;;
esac
[ ! -e "$RUN/$next/submit.sh" ] || bash "$RUN/$next/submit.sh"
"""
    head = _head(f"{plan.name}-verify", resources, log)
    return "\n".join([head, "set -uo pipefail", _setup(plan, resources), body])


def step_script(plan: Plan, step: Step, log: str) -> str:
    """Return the job of one step after the store is complete."""
    options = [f"--array=0-{step.array - 1}"] if step.array > 1 else []
    words = " ".join([*_python(plan.environment, step.resources), "-u", "-m"])
    module, *arguments = step.run
    called = [module] if "." in module else ["coarlib", module]
    lines = [
        " ".join(["exec", words, *map(_indexed, called)]),
        *_grouped([_indexed(word) for word in arguments]),
    ]
    head = _head(f"{plan.name}-{step.name}", step.resources, log, options)
    done = ""
    if step.creates is not None:
        path = _indexed(step.creates)
        done = f'\nif [ -e {path} ]; then\n  echo {path} "is there: nothing to do"\n  exit 0\nfi'
    return "\n".join(
        [head, "set -euo pipefail", _setup(plan, step.resources), done, multi_line(lines), ""]
    )


def _grouped(words: Sequence[str]) -> list[str]:
    """Put each option on a line with its values."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _indexed(word: str) -> str:
    """Quote a word for the shell; ``{index}`` becomes the array index."""
    parts = word.split("{index}")
    return '"${SLURM_ARRAY_TASK_ID:-0}"'.join(shlex.quote(part) if part else "" for part in parts)


def _head(
    name: str, resources: Resources, log: str, options: Sequence[str] = (), requeue: bool = True
) -> str:
    lines = [f"--job-name={name}", f"--output={_sbatch_word(log)}", "--open-mode=append"]
    lines.append(f"--nodes={resources.nodes}")
    lines += ["--requeue"] if requeue else []
    lines += [f"--time={resources.time}", f"--cpus-per-task={resources.cpus}"]
    if resources.gpus:
        lines.append(f"--gres=gpu:{resources.gpus}")
    for key, option in {"memory": "mem", "constraint": "constraint", "exclude": "exclude"}.items():
        lines += _option(option, getattr(resources, key))
    for key in ("partition", "account", "qos"):
        lines += _option(key, getattr(resources, key))
    lines += [*options, *resources.sbatch]
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines)])


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [f"--{name}={_sbatch_word(value)}"]


def _sbatch_word(text: str) -> str:
    """Quote a value in a line that sbatch, not the shell, reads."""
    if re.fullmatch(r"[\w./:=,@%+&|!*()\[\]-]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _setup(plan: Plan, resources: Resources) -> str:
    change = [] if plan.directory == "." else [f"cd {shlex.quote(plan.directory)} || exit 1"]
    lines = [*change, *plan.environment.setup]
    return "\n".join([*lines, f"export OMP_NUM_THREADS={resources.cpus}"])


def _python(environment: Environment, resources: Resources) -> list[str]:
    """Return the words that start Python, in a container if there is one."""
    python = shlex.quote(environment.python or "python")
    if environment.container is None:
        return [python]
    if environment.runtime == "pyxis":
        return ["srun", "--overlap", "--ntasks=1", *_pyxis(environment), python]
    words = [environment.runtime, "exec", *(["--nv"] if resources.gpus else [])]
    for mount in environment.mounts:
        words += ["--bind", shlex.quote(mount)]
    return [*words, shlex.quote(environment.container), python]


def _pyxis(environment: Environment) -> list[str]:
    if environment.container is None:
        return []
    words = [f"--container-image={shlex.quote(environment.container)}"]
    if environment.mounts:
        words.append(f"--container-mounts={shlex.quote(','.join(environment.mounts))}")
    return words


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return shlex.quote(json.dumps(value) if isinstance(value, list | Mapping) else str(value))


def multi_line(lines: Sequence[str]) -> str:
    """Join the parts of a command, one a line."""
    return " \\\n    ".join(lines)

"""The readable templates in slurm/, written by the same code that ``coar submit`` uses.

python -m coarlib.cluster.templates slurm     writes them again after a change
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.cluster.plan import Plan, Resources, Step
from coarlib.cluster.scripts import Blocks, fill_script, step_script

__all__ = ["templates"]

NUM_MODELS, ROWS_PER_JOB = 800, 100
LOG = "%x-%A_%a.log"


def _words(command: str) -> tuple[str, ...]:
    return tuple(command.split())


PLAN = Plan(
    store="out/digits/store",
    task="digits",
    name="digits",
    rows_per_job=ROWS_PER_JOB,
    resources=Resources(time="01:00:00", cpus=2),
)
FIT = Step(
    "fit",
    _words(
        "run_regression out/digits/store --config estimate/digits/regression_config_test.yaml "
        "--out out/digits/attributions"
    ),
    creates="out/digits/attributions/datamodels.pt",
)
SCORE = Step(
    "score",
    _words(
        "score_lds out/digits/store out/digits/attributions --rows 700:800 "
        "--out out/digits/lds.json"
    ),
)
VERIFY = Step("verify", ("verify", "out/digits/store", "--repair"))

CHAIN = """#!/bin/bash
# A chain of jobs: fill the store, verify it, fit, score. Change the scripts it submits first.
#
# afterany, not afterok, follows an array: one failed task would keep afterok waiting for ever. The
# fit itself refuses a store with too few completed rows; submit fill_array.sbatch again for them
# (tasks whose rows are done end at once), or let coar submit see to that.
set -euo pipefail
cd "$(dirname "$0")/.."

fill=$(sbatch --parsable slurm/fill_array.sbatch)
verify=$(sbatch --parsable --dependency="afterany:${fill%%;*}" slurm/verify.sbatch)
then=(--parsable --kill-on-invalid-dep=yes)
fit=$(sbatch "${then[@]}" --dependency="afterok:${verify%%;*}" slurm/fit.sbatch)
score=$(sbatch "${then[@]}" --dependency="afterok:${fit%%;*}" slurm/score.sbatch)
echo "fill $fill, verify $verify, fit $fit, score $score"
"""


def templates() -> dict[str, str]:
    """Return {file name: content} of everything in slurm/ but its README."""
    every = Blocks(f"0-{PLAN.num_blocks(NUM_MODELS) - 1}")

    def fill(**changes: object) -> str:
        plan = Plan(**{**vars(PLAN), **changes})
        return _explained(fill_script(plan, NUM_MODELS, every, LOG))

    packed = Resources(time="01:00:00", cpus=2, gpus=1)
    nodes = Resources(time="01:00:00", cpus=2, nodes=2)
    return {
        "fill_array.sbatch": fill(),
        "fill_packed_gpu.sbatch": fill(resources=packed, workers_per_job=4),
        "fill_multi_node.sbatch": fill(resources=nodes, workers_per_job=2),
        "verify.sbatch": _step(VERIFY),
        "fit.sbatch": _step(FIT),
        "score.sbatch": _step(SCORE),
        "chain.sh": CHAIN,
    }


def _step(step: Step) -> str:
    plan = Plan(**{**vars(PLAN), "then": ()})
    return _explained(step_script(plan, step, "%x-%j.log"))


def _explained(script: str) -> str:
    """Say above what to change; jobs start in the directory they were submitted from."""
    first, rest = script.split("\n", 1)
    note = (
        "# Submit from the root of the checkout: sbatch slurm/<this file>. Change the #SBATCH\n"
        "# lines to your cluster, and below them the store, its rows and the worker's command."
    )
    return f"{first}\n{note}\n{rest}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the templates to the directory that the first argument names."""
    words = sys.argv[1:] if argv is None else list(argv)
    directory = Path(words[0] if words else "slurm")
    for name, content in templates().items():
        path = directory / name
        path.write_text(content, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)


if __name__ == "__main__":
    main()

#!/bin/bash
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

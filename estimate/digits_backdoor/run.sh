#!/usr/bin/env bash
# A backdoor planted, attributed and cut out again; two minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-out/digits_backdoor}

python -m estimate.initialize_store --logging.logdir "$out/store" \
  --logging.spec specs/digits_backdoor.json
python -m estimate.digits_backdoor.make_dataset --expt.base_dir "$out/store"
python -m estimate.run_regression --config estimate/digits_backdoor/regression_config.yaml \
  --data.data_path "$out/store" --cfg.out_dir "$out/attributions"
python -m estimate.edit --edit.task digits_backdoor --edit.attributions "$out/attributions" \
  --edit.target 450-855 --edit.reference 0-449 --edit.out_dir "$out/edit"

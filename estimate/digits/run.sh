#!/usr/bin/env bash
# The digits set-up from nothing to attributions; about a minute on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
store=${1:-out/digits/store}
beton=${store%/}.beton

python -m estimate.initialize_store --logging.logdir "$store" --logging.spec specs/digits.json
python -m estimate.digits.make_dataset --expt.base_dir "$store"
python -m estimate.write_dataset --cfg.data_dir "$store" --cfg.out_path "$beton" \
  --cfg.x_name masks --cfg.y_name test_margins
python -m estimate.run_regression --config estimate/digits/regression_config.yaml \
  --data.data_path "$beton" --cfg.out_dir "${store%/}_attributions"

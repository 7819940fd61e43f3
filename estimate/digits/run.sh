#!/usr/bin/env bash
# The digits set-up from nothing to attributions; about a minute on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
store=${1:-out/digits/store}
beton=${store%/}.beton

python -m estimate.initialize_store "$store" --spec specs/digits.json
python -m estimate.digits.make_dataset "$store"
python -m estimate.write_dataset "$store" --out "$beton" --x_name masks --y_name test_margins
python -m estimate.run_regression "$beton" --config estimate/digits/regression_config.yaml \
  --out "${store%/}_attributions"

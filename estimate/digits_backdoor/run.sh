#!/usr/bin/env bash
# A backdoor planted, attributed and cut out again; two minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-out/digits_backdoor}

python -m estimate.initialize_store "$out/store" --spec specs/digits_backdoor.json
python -m estimate.digits_backdoor.make_dataset "$out/store"
python -m estimate.run_regression "$out/store" \
  --config estimate/digits_backdoor/regression_config.yaml --out "$out/attributions"
python -m estimate.edit "$out/attributions" --task digits_backdoor --target 450-855 \
  --reference 0-449 --out "$out/edit"

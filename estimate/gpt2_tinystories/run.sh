#!/usr/bin/env bash
# COAR for GPT-2 on TinyStories: store, ablations, attributions. Needs transformers; weights and
# stories come from the Hugging Face hub, or from a folder and a JSON list given here:
#   run.sh [STORE] [MODEL STORIES]
# The full-size set-up is specs/gpt2_tinystories.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
store=${1:-out/gpt2_tinystories/store}
source=(${2:+--expt.model_path "$2"} ${3:+--expt.data_path "$3"})

python -m estimate.initialize_store "$store" --spec specs/gpt2_tinystories_test.json
python -m estimate.gpt2_tinystories.make_dataset --expt.base_dir "$store" \
  --expt.subsample_prob 0.975 "${source[@]}"
python -m estimate.write_dataset "$store" --out "${store%/}.beton" --x_name masks \
  --y_name test_margins
python -m estimate.run_regression "${store%/}.beton" \
  --config estimate/gpt2_tinystories/regression_config_test.yaml --out "${store%/}_attributions"

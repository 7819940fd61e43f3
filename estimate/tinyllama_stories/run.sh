#!/usr/bin/env bash
# COAR for the TinyStories Llama: store, ablations, attributions. Give the files:
#   run.sh MODEL TOKENIZER STORIES [STORE]
# The full-size set-up is specs/tinyllama_stories.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:?the llama2.c checkpoint, such as models/stories260K.bin}
tokenizer=${2:?its tokenizer, such as models/tok512.bin}
stories=${3:?a JSON list of stories}
store=${4:-out/tinyllama_stories/store}

python -m estimate.initialize_store "$store" --spec specs/tinyllama_stories_test.json
python -m estimate.tinyllama_stories.make_dataset "$store" --model_path "$model" \
  --tokenizer_path "$tokenizer" --data_path "$stories"
python -m estimate.write_dataset "$store" --out "${store%/}.beton" --x_name masks \
  --y_name test_margins
python -m estimate.run_regression "${store%/}.beton" \
  --config estimate/tinyllama_stories/regression_config_test.yaml --out "${store%/}_attributions"

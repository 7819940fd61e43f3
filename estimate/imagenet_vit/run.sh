#!/usr/bin/env bash
# COAR for ViT-B/16 on ImageNet: store, ablations, attributions. Give the images:
#   run.sh IMAGES [STORE]
# The full-size set-up is specs/imagenet_vit.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=${1:?the images, such as betons/imagenet_val.beton}
store=${2:-out/imagenet_vit/store}

python -m estimate.initialize_store "$store" --spec specs/imagenet_vit_test.json
python -m estimate.imagenet_vit.make_dataset "$store" --keep 0.95 \
  --beton_path "$images"
python -m estimate.write_dataset "$store" --out "${store%/}.beton" --x_name masks \
  --y_name val_margins
python -m estimate.run_regression "${store%/}.beton" \
  --config estimate/imagenet_vit/regression_config_test.yaml --out "${store%/}_attributions"

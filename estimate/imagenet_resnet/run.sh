#!/usr/bin/env bash
# COAR for ResNet-50 on ImageNet: store, ablations, attributions. Give the images:
#   run.sh IMAGES [STORE]
# The full-size set-up is specs/imagenet_resnet.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=${1:?the images, such as betons/imagenet_val.beton}
store=${2:-out/imagenet_resnet/store}

python -m estimate.initialize_store "$store" --spec specs/imagenet_resnet_test.json
python -m estimate.imagenet_resnet.make_dataset "$store" --keep 0.95 \
  --beton_path "$images"
python -m estimate.write_dataset "$store" --out "${store%/}.beton" --x_name masks \
  --y_name val_margins
python -m estimate.run_regression "${store%/}.beton" \
  --config estimate/imagenet_resnet/regression_config_test.yaml --out "${store%/}_attributions"

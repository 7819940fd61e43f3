#!/usr/bin/env bash
# COAR on CIFAR-10: store, ablations, attributions. Give the model and the images:
#   run.sh MODEL IMAGES [STORE] [SPEC] [CONFIG]
# The full-size set-up is specs/cifar_resnet.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:?the weights, such as models/cifar_resnet.pt}
images=${2:?the images, such as betons/cifar10.beton or cifar10_test.npz}
store=${3:-out/cifar_resnet/store}
spec=${4:-specs/cifar_resnet_test.json}
config=${5:-estimate/cifar_resnet/regression_config_test.yaml}

python -m estimate.initialize_store "$store" --spec "$spec"
python -m estimate.cifar_resnet.make_dataset "$store" --keep 0.95 --model_path "$model" \
  --beton_path "$images"
python -m estimate.write_dataset "$store" --out "${store%/}.beton" --x_name masks \
  --y_name test_margins
python -m estimate.run_regression "${store%/}.beton" --config "$config" \
  --out "${store%/}_attributions"

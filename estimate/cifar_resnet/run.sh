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

python -m estimate.initialize_store --logging.logdir "$store" --logging.spec "$spec"
python -m estimate.cifar_resnet.make_dataset --expt.base_dir "$store" \
  --expt.subsample_prob 0.95 --expt.model_path "$model" --expt.beton_path "$images"
python -m estimate.write_dataset --cfg.data_dir "$store" --cfg.out_path "${store%/}.beton" \
  --cfg.x_name masks --cfg.y_name test_margins
python -m estimate.run_regression --config "$config" --data.data_path "${store%/}.beton" \
  --cfg.out_dir "${store%/}_attributions"

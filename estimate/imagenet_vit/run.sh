#!/usr/bin/env bash
# COAR for ViT-B/16 on ImageNet: store, ablations, attributions. Give the images:
#   run.sh IMAGES [STORE]
# The full-size set-up is specs/imagenet_vit.json with regression_config.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=${1:?the images, such as betons/imagenet_val.beton}
store=${2:-out/imagenet_vit/store}

python -m estimate.initialize_store --logging.logdir "$store" \
  --logging.spec specs/imagenet_vit_test.json
python -m estimate.imagenet_vit.make_dataset --expt.base_dir "$store" \
  --expt.subsample_prob 0.95 --expt.batch_size 200 --expt.beton_path "$images"
python -m estimate.write_dataset --cfg.data_dir "$store" --cfg.out_path "${store%/}.beton" \
  --cfg.x_name masks --cfg.y_name val_margins
python -m estimate.run_regression --config estimate/imagenet_vit/regression_config_test.yaml \
  --data.data_path "${store%/}.beton" --cfg.out_dir "${store%/}_attributions"

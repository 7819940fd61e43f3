"""Fill a store with margins of a CIFAR-10 ResNet under filter ablation (2,304 filters in COAR's).

python -m estimate.cifar_resnet.make_dataset --expt.base_dir STORE --expt.subsample_prob 0.95
    --expt.start_index 0 --expt.end_index 100 --expt.model_path MODEL --expt.beton_path IMAGES
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Boolean, Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.cifar_resnet.task import CifarTask

PARAMS = {
    "model_path": Param(str, "weights of the network", default="models/cifar_resnet.pt"),
    "beton_path": Param(str, "images: .beton, .npz or folder", default="betons/cifar10.beton"),
    "subsample_skip": Param(Whole(1), "use every so-many-th image", default=1),
    "batch_size": Param(Whole(1), "images in one forward pass; chosen if not given"),
    "ablate": Param(str, "what ablating means: mean, resample …", default="zero_weights"),
    "normalization": Param(str, "auto, cifar or imagenet", default="auto"),
    "autocast": Param(str, "auto, none, bf16, fp16, pure_bf16 or pure_fp16", default="auto"),
    "compiled": Param(Boolean(), "use torch.compile; after a while if not given"),
    "num_workers": Param(Whole(0), "accepted for upstream's commands", default=0),
}
COMMAND = setup_command(CifarTask, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, CifarTask, argv)


if __name__ == "__main__":
    run(main)

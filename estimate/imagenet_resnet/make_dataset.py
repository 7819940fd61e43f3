"""Fill a store with ImageNet margins of ResNet-50 under filter ablation (22,720 filters).

python -m estimate.imagenet_resnet.make_dataset --expt.base_dir STORE --expt.subsample_prob 0.95
    --expt.start_index 0 --expt.end_index 100 --expt.beton_path IMAGES
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.imagenet_resnet.task import ImagenetResnetTask

PARAMS = {
    "beton_path": Param(str, "images: .beton, folder or .npz", default="betons/imagenet_val.beton"),
    "model_path": Param(str, "a state dict; empty downloads torchvision's", default=""),
    "subsample_skip": Param(Whole(1), "use every so-many-th image", default=1),
    "batch_size": Param(Whole(1), "images in one forward pass; chosen if not given"),
    "ablate": Param(str, "what ablating means: mean, resample …", default="zero_weights"),
    "autocast": Param(str, "auto, none, bf16, fp16, pure_bf16 or pure_fp16", default="auto"),
    "num_workers": Param(Whole(0), "accepted for upstream's commands", default=0),
}
COMMAND = setup_command(ImagenetResnetTask, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, ImagenetResnetTask, argv)


if __name__ == "__main__":
    run(main)

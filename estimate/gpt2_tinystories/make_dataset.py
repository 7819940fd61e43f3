"""Fill a store with TinyStories margins of GPT-2 under ablation (64,512 components).

python -m estimate.gpt2_tinystories.make_dataset --expt.base_dir STORE --expt.subsample_prob 0.975
    --expt.start_index 0 --expt.end_index 100
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.gpt2_tinystories.task import HUB_DATA, Gpt2Task

PARAMS = {
    "model_path": Param(str, "folder of GPT-2, or its name on the hub", default="gpt2"),
    "data_path": Param(str, "JSON list of stories, or a name on the hub", default=HUB_DATA),
    "num_stories": Param(Whole(1), "the last so many stories are used", default=500),
    "batch_size": Param(Whole(1), "stories in one forward pass; chosen if not given"),
    "ablate": Param(str, "what ablating means: mean, resample …", default="zero_weights"),
    "autocast": Param(str, "auto, none, bf16, fp16, pure_bf16 or pure_fp16", default="auto"),
    "num_workers": Param(Whole(0), "accepted for upstream's commands", default=0),
}
COMMAND = setup_command(Gpt2Task, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, Gpt2Task, argv)


if __name__ == "__main__":
    run(main)

"""Fill a store with story margins of the TinyStories Llama (40 heads and 860 neurons).

python -m estimate.tinyllama_stories.make_dataset --expt.base_dir STORE
    --expt.model_path stories260K.bin --expt.tokenizer_path tok512.bin --expt.data_path STORIES
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Boolean, Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.tinyllama_stories.task import TinyLlamaTask

PARAMS = {
    "model_path": Param(str, "llama2.c checkpoint", default="models/stories260K.bin"),
    "tokenizer_path": Param(str, "llama2.c tokenizer", default="models/tok512.bin"),
    "data_path": Param(str, "JSON list of stories", default="data/tinystories.json"),
    "num_stories": Param(Whole(1), "the first so many stories are used", default=50),
    "num_tokens": Param(Whole(2), "tokens of a story at most", default=128),
    "batch_size": Param(Whole(1), "stories in one forward pass; chosen if not given"),
    "ablate": Param(str, "what ablating means: mean, resample …", default="zero_weights"),
    "autocast": Param(str, "auto, none, bf16, fp16, pure_bf16 or pure_fp16", default="auto"),
    "compiled": Param(Boolean(), "use torch.compile; after a while if not given"),
}
COMMAND = setup_command(TinyLlamaTask, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, TinyLlamaTask, argv)


if __name__ == "__main__":
    run(main)

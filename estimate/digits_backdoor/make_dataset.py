"""Fill a store with margins of the digits CNN with a backdoor (240 filters)."""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.digits_backdoor.task import DEFAULT_MODEL_PATH, DigitsBackdoorTask

PARAMS = {
    "model_path": Param(str, "the model; trained there if absent", default=DEFAULT_MODEL_PATH),
    "batch_size": Param(Whole(1), "digits in one forward pass", default=500),
    "ablate": Param(str, "what ablating means: mean, resample …", default="zero_weights"),
}
COMMAND = setup_command(DigitsBackdoorTask, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, DigitsBackdoorTask, argv)


if __name__ == "__main__":
    run(main)

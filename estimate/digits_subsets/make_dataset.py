"""Fill a store with margins of digit classifiers retrained on subsets (1,347 examples)."""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Param, Whole, run
from coarlib.commands.store.make_dataset import fill_with, setup_command
from estimate.digits_subsets.task import DigitsSubsetsTask

PARAMS = {
    "model": Param(str, "logistic or cnn", default="logistic"),
    "runs": Param(Whole(1), "models a subset", default=5),
    "checkpoints": Param(str, "directory to keep every model in"),
}
COMMAND = setup_command(DigitsSubsetsTask, PARAMS, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one worker."""
    fill_with(COMMAND, DigitsSubsetsTask, argv)


if __name__ == "__main__":
    run(main)

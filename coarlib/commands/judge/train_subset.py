"""Fill one row of a store, as one task of an array job: retrain subset number --idx.

    coar train_subset STORE --task digits_subsets --idx 17
    coar train_subset --config CONFIG.yaml --idx 17

Takes what make_dataset takes; the configuration may hold all of it. A row that is there already is
not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.store import make_dataset

COMMAND = Command(
    "train_subset",
    __doc__,
    {
        **make_dataset.COMMAND.own,
        "idx": Param(
            Whole(0), "the number of the subset to train", required=True, also=("worker.index",)
        ),
    },
    make_dataset.COMMAND.ignored,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill row ``--idx`` by make_dataset."""
    make_dataset.fill_from(COMMAND.parse(argv))


if __name__ == "__main__":
    run(main)

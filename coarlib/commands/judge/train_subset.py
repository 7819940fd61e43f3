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

_OTHER_ROWS = ("rows", "start_index", "end_index", "num_partitions", "partition_index")
COMMAND = Command(
    "train_subset",
    __doc__,
    {
        "idx": Param(Whole(0), "the number of the subset to train", required=True),
        **{key: p for key, p in make_dataset.COMMAND.own.items() if key not in _OTHER_ROWS},
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill row ``--idx`` by make_dataset."""
    args = COMMAND.parse(argv)
    args.rows, args.num_partitions, args.partition_index = f"{args.idx}:{args.idx + 1}", 1, 0
    make_dataset.fill_from(args)


if __name__ == "__main__":
    run(main)

"""Fill one row of a store, as one task of an array job: retrain subset number --idx.

    coar train_subset STORE --task digits_subsets --idx 17
    coar train_subset --config CONFIG.yaml --idx 17

Takes what make_dataset takes; the configuration may hold all of it. A row that is there already is
not trained again. CONFIG.yaml may also be a configuration of quanda's LinearDatamodeling: then
subset --idx of it is trained, and the model lies where quanda puts it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.judge.of_quanda import split_off
from coarlib.commands.leaving import next_step
from coarlib.commands.store import make_dataset
from coarlib.devices import resolve_device

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
    """Fill row ``--idx`` by make_dataset, or train quanda's subset."""
    words = list(sys.argv[1:] if argv is None else argv)
    if (found := split_off(words)) is not None:
        _train_for_quanda(*found)
        return
    make_dataset.fill_from(COMMAND.parse(words))


_FOR_QUANDA = Command(
    "train_subset",
    __doc__,
    {
        "idx": Param(Whole(0), "the number of the subset to train", required=True),
        "device": common.device(),
        "batch_size": Param(Whole(1), "examples a step", default=64),
    },
)


def _train_for_quanda(config: Path, words: list[str]) -> None:
    from coarlib.interop.quanda import LinearDatamodeling

    args = _FOR_QUANDA.parse(words)
    device = str(resolve_device(args.device))
    found = LinearDatamodeling.train_subset(config, args.idx, device, args.batch_size)
    print(f"subset {args.idx} of {len(found.subset_ids)} is trained: {found.checkpoint(args.idx)}")
    print(next_step("lds_benchmark", config=config))


if __name__ == "__main__":
    run(main)

"""Fill one row of a store, as one task of an array job: retrain subset number --idx.

    python -m estimate.train_subset --config CONFIG.yaml --idx 17

The configuration holds make_dataset's arguments (expt: {base_dir: …, task: …, task_args: …}); they
may also be given here. A row that is there already is not trained again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coarlib.commands.arguments import run
from coarlib.commands.store import make_dataset
from coarlib.errors import ArgumentError


def main(argv: Sequence[str] | None = None) -> None:
    """Fill row ``--idx`` by make_dataset."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        make_dataset.main(["--help"])
    index, rest = _without_index(words)
    row = ["--expt.start_index", str(index), "--expt.end_index", str(index + 1)]
    make_dataset.main([*rest, *row])


def _without_index(words: list[str]) -> tuple[int, list[str]]:
    rest, found = [], None
    remaining = iter(words)
    for word in remaining:
        if word == "--idx":
            found = next(remaining, "")
        elif word.startswith("--idx="):
            found = word.removeprefix("--idx=")
        else:
            rest.append(word)
    if found is None:
        raise ArgumentError("--idx is required: the number of the subset to train")
    if not found.isdecimal():
        raise ArgumentError(f"--idx must be a whole number, not {found!r}")
    return int(found), rest


if __name__ == "__main__":
    run(main)

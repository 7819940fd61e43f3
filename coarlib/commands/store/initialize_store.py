"""Initialise a store of memory-mapped arrays, from a task or from a JSON spec.

    coar initialize_store STORE --task digits --rows 1000 --keep 0.95
    coar initialize_store STORE --spec specs/digits.json

Creates STORE with one .npy array for each key of the schema, the _completed flags and the row
checksums; files are sparse and take no room until workers fill them. With --task, names, shapes and
dtypes are the task's. Running it twice changes nothing; with another spec it refuses and names the
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.errors import SpecError
from coarlib.loading import load_npy
from coarlib.setups import shipped_file
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec

COMMAND = Command(
    "initialize_store",
    __doc__,
    {
        "store": common.store("directory of the store to create", "logging.logdir"),
        "spec": Param(
            str,
            "JSON file with num_models, schema and optionally design",
            required=True,
            also=("logging.spec",),
        ),
        "masks": Param(
            str,
            ".npy file, bool [num_models, N], for an explicit design",
            also=("logging.masks",),
        ),
        "labels": Param(
            str,
            ".npy file, classes [N], for a stratified or class_balanced design",
            also=("logging.labels",),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Create the store that the arguments describe."""
    args = COMMAND.parse(argv)
    masks, labels = _load(args.masks), _load(args.labels)
    created = initialize(args.store, load_spec(shipped_file(args.spec)), masks, labels)
    store = Store.open(args.store)
    done = len(store.completed_rows())
    if created:
        print(f"created {args.store}: {store.describe()}")
        print(f"{store.num_models} rows to fill: coar make_dataset {args.store} --task TASK")
    else:
        print(
            f"{args.store} is already there with this spec ({done} of {store.num_models} rows "
            "completed); nothing changed"
        )


def _load(path: str | None) -> NDArray[Any] | None:
    return None if path is None else load_npy(path, SpecError)


if __name__ == "__main__":
    run(main)

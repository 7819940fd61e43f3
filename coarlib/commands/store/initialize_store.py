"""Initialise a store of memory-mapped arrays from a JSON spec.

    python -m initialize_store --logging.logdir STORE --logging.spec specs/digits.json

Creates STORE with one .npy array a schema key (num_models rows each), the _completed flags and the
row checksums; files are sparse and take no room until workers fill them. Running it twice changes
nothing; with another spec it refuses and names the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.commands.arguments import Param, parse, run
from coarlib.errors import SpecError
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec

SECTIONS = {
    "logging": {
        "logdir": Param(str, "directory of the store to create", required=True),
        "spec": Param(
            str, "JSON file with num_models, schema and optionally design", required=True
        ),
        "masks": Param(str, ".npy file, bool [num_models, N], for an explicit design"),
        "labels": Param(str, ".npy file, classes [N], for a stratified or class_balanced design"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Create the store that the arguments describe."""
    args = parse(__doc__ or "", SECTIONS, argv).logging
    masks, labels = _load("masks", args.masks), _load("labels", args.labels)
    created = initialize(args.logdir, load_spec(args.spec), masks, labels)
    store = Store.open(args.logdir)
    done = len(store.completed_rows())
    if created:
        print(f"created {args.logdir}: {store.describe()}")
        print(f"{store.num_models} rows to fill: python -m estimate.<set-up>.make_dataset")
    else:
        print(
            f"{args.logdir} is already there with this spec ({done} of {store.num_models} rows "
            "completed); nothing changed"
        )


def _load(what: str, path: str | None) -> NDArray[Any] | None:
    if path is None:
        return None
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(f"cannot read the {what} {path}: {error}") from error


if __name__ == "__main__":
    run(main)

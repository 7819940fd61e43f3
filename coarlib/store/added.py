"""Further outputs of rows that are there already.

Adding an array to rows in place would change the digests that make them rows. So an added output
is a store of its own, ``added/<output>/`` inside the store: the masks again, the output, and
``row_digests``, the digest of the row that each was measured for. Its rows are durable, claimed,
verified and merged as any others, and everything that reads stores reads it. An output whose row
was rewritten since does not match that digest: it is stale, and an error, wherever it is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.store.create import initialize
from coarlib.store.grow import grow
from coarlib.store.reader import Store
from coarlib.store.spec import ArraySpec, StoreSpec, check_name

__all__ = [
    "ADDED_DIR",
    "ROW_DIGESTS",
    "added_outputs",
    "added_path",
    "open_added",
    "stale_rows",
    "store_of_output",
]

ADDED_DIR = "added"
ROW_DIGESTS = "row_digests"
_DIGEST_SPEC = ArraySpec(np.dtype(np.uint64), ())


def added_path(store: Store, output: str) -> Path:
    """Return where the added output ``output`` is kept; SpecError if it cannot be a name."""
    check_name(output)
    return store.path / ADDED_DIR / output


def added_outputs(store: Store) -> list[str]:
    """Return the names of the outputs that were added to ``store``."""
    return sorted(path.parent.name for path in (store.path / ADDED_DIR).glob("*/spec.json"))


def open_added(store: Store, output: str, array: ArraySpec, mask_key: str, made_by: str) -> Store:
    """Open the added output, created or grown to the rows of ``store`` if need be.

    Parameters
    ----------
    array : ArraySpec
        Dtype and shape of the output in one row.
    mask_key : str
        The store's array of masks.
    made_by : str
        What measures it; part of what the output is checked against.

    Raises
    ------
    StoreError
        If the store has an array of that name, carries no checksums, or holds an added output of
        that name that is of another dtype or shape, or was made by something else.
    """
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it)")
    if output in store.spec.schema:
        raise StoreError(
            f"{store.path} has an array {output} already; make_dataset fills it, or choose "
            "another name"
        )
    schema = {mask_key: store.spec.schema[mask_key], output: array, ROW_DIGESTS: _DIGEST_SPEC}
    notes = f"{output} of the rows of {store.path.name}"
    path = added_path(store, output)
    if (path / "spec.json").is_file():
        found = Store.open(path)
        if found.num_models < store.num_models:
            found = grow(found, store.num_models)
    else:
        initialize(path, StoreSpec(store.num_models, schema, None, {output: made_by}, notes))
        found = Store.open(path)
    differences = found.spec.differences(StoreSpec(found.num_models, schema))
    if found.spec.outputs.get(output) != made_by:
        differences.append(f"made by {found.spec.outputs.get(output)} there, {made_by} here")
    if differences:
        raise StoreError(
            f"{path} holds another output of that name ({'; '.join(differences)}); choose another "
            "name, or remove that directory"
        )
    return found


def stale_rows(store: Store, added: Store) -> NDArray[np.int64]:
    """Return the rows of ``added`` that were measured for another version of the store's rows."""
    rows = added.completed_rows()
    rows = rows[rows < store.num_models]
    digests = added.array(ROW_DIGESTS)[rows]
    return np.asarray(rows[digests != store.checksums()[rows]])


def store_of_output(store: Store, output: str | None) -> Store:
    """Return the store that holds ``output``: ``store``, or the added output of that name.

    Raises
    ------
    StoreError
        If it is an added output with stale rows.
    """
    if output is None or output in store.spec.schema or output not in added_outputs(store):
        return store
    added = Store.open(added_path(store, output))
    stale = stale_rows(store, added)
    if len(stale):
        raise StoreError(
            f"{output} of {len(stale)} rows of {store.path} is stale: it was measured before the "
            f"rows were written anew (the first is {stale[0]}); measure it again (add_output "
            "with rerun)"
        )
    return added

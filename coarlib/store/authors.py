"""Which task made which rows, as the workers' logs tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coarlib.store.identity import UNKNOWN, identity_of
from coarlib.store.provenance import read_batches
from coarlib.store.reader import Store

__all__ = ["recorded_rows", "rows_by_identity"]


def rows_by_identity(store: Store) -> dict[str, NDArray[np.int64]]:
    """Return which completed rows each task made, as the workers' logs tell.

    Rows of which no log tells are those of ``"unknown"``.
    """
    made = np.zeros(store.num_models, np.int64)
    names, checksums = [UNKNOWN], store.checksums()
    for batch in read_batches(store.path):
        name = identity_of(batch.worker)
        if name not in names:
            names.append(name)
        for row, digest in batch.rows_and_digests():
            if row < len(made) and digest == checksums[row]:
                made[row] = names.index(name)
    done = checksums != 0
    found = {name: np.flatnonzero(done & (made == i)) for i, name in enumerate(names)}
    return {name: rows for name, rows in found.items() if len(rows)}


def recorded_rows(store: Store) -> NDArray[np.int64]:
    """Return the completed rows of which a worker's log tells who made them."""
    checksums, found = store.checksums(), np.zeros(store.num_models, np.bool_)
    for batch in read_batches(store.path):
        if "host" in batch.worker:  # its first line, which says who it was, is whole
            for row, digest in batch.rows_and_digests():
                if row < len(found) and digest == checksums[row]:
                    found[row] = True
    return np.flatnonzero(found)

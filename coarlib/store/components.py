"""What the entries of a store's masks stand for: the component table, kept beside the arrays.

The first worker that fills rows writes ``components.json``; later ones are held to it, since rows
of two selections in one store would be a silent mixture. It is plain JSON, as
``coarlib.ablation.ComponentSet.to_json`` gives and ``from_json`` reads, and opens without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coarlib.errors import StoreError
from coarlib.store.settle import read_sealed_json, sealed_json, settle

COMPONENTS_FILE = "components.json"

Table = Sequence[Mapping[str, Any]]


def read_components(store: Path) -> list[dict[str, Any]] | None:
    """Read the component table of a store; None if no worker has written one.

    Raises
    ------
    StoreError
        If the file is not such a table.
    """
    path = store / COMPONENTS_FILE
    found = read_sealed_json(path)
    if found is None:
        return None
    if isinstance(found, dict):
        found = found.get("components")
    if not isinstance(found, list) or not all(isinstance(group, dict) for group in found):
        raise StoreError(f"{path} is no list of component groups")
    return found


def settle_components(store: Path, table: Table | None) -> None:
    """Fix what the mask entries of a store stand for: the first worker decides for all.

    Parameters
    ----------
    store : Path
    table : sequence of dict, optional
        The components of the worker's task; None if it cannot tell, which checks nothing.

    Raises
    ------
    StoreError
        If the store was filled with other components, or the table cannot be written.
    """
    if table is None:
        return
    mine = json.loads(json.dumps(list(table)))
    settle(store / COMPONENTS_FILE, sealed_json({"components": mine}))
    difference = first_difference(read_components(store) or [], mine)
    if difference:
        raise StoreError(
            f"the rows of {store} ablate other components than this task: {difference}; give the "
            "model and settings they were made with, or make another store"
        )


def first_difference(one: Table, other: Table) -> str | None:
    """Say where two component tables first differ; None if they agree."""
    if list(one) == list(other):
        return None
    for here, there in zip(one, other, strict=False):
        if here != there:
            return f"{_named(here)} there, {_named(there)} here"
    return f"{len(one)} groups of components there, {len(other)} here"


def _named(group: Mapping[str, Any]) -> str:
    units = group.get("units", 1)
    place = ".".join(str(group[key]) for key in ("module", "parameter") if group.get(key))
    return f"{units} × {group.get('kind')} of {place} (axis {group.get('axis', '-')})"

"""The stores that lie inside a store: added outputs, gradient passes and trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coarlib.store.added import added_outputs, added_path
from coarlib.store.reader import Store

__all__ = [
    "BLOCKS",
    "PASSES_DIR",
    "TRIALS_DIR",
    "open_blocks",
    "passes_of_a_block",
    "stores_inside",
]

BLOCKS = PASSES_DIR, TRIALS_DIR = "gradient_passes", "trials"


def open_blocks(path: Path, name: str) -> Store | None:
    """Open the passes or trials of the store at ``path``; None if it has none.

    Raises
    ------
    StoreError
        If what is there is damaged.
    """
    return Store.open(path / name) if (path / name).is_dir() else None


def passes_of_a_block(kept: Store) -> int | None:
    """How many passes or trials one row of such a store holds; None if it does not tell."""
    plans = [plan for plan in kept.spec.outputs.values() if isinstance(plan, Mapping)]
    found = plans[0].get("passes") if len(plans) == 1 else None
    return found if isinstance(found, int) else None


def stores_inside(store: Store) -> dict[str, Store]:
    """Return {name: store} of the added outputs and, named as they are, passes and trials."""
    found = {name: Store.open(added_path(store, name)) for name in added_outputs(store)}
    for name in BLOCKS:
        if (kept := open_blocks(store.path, name)) is not None:
            found[name] = kept
    return found

"""The stores that lie inside a store: added outputs, and gradient passes."""

from __future__ import annotations

from coarlib.store.added import added_outputs, added_path
from coarlib.store.reader import Store

__all__ = ["PASSES_DIR", "stores_inside"]

PASSES_DIR = "gradient_passes"


def stores_inside(store: Store) -> dict[str, Store]:
    """Return {name: store} of the added outputs and, under its own name, of gradient passes."""
    found = {name: Store.open(added_path(store, name)) for name in added_outputs(store)}
    if (store.path / PASSES_DIR / "spec.json").is_file():
        found[PASSES_DIR] = Store.open(store.path / PASSES_DIR)
    return found

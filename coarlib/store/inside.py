"""The stores that lie inside a store: added outputs, gradient passes and trials."""

from __future__ import annotations

from coarlib.store.added import added_outputs, added_path
from coarlib.store.reader import Store

__all__ = ["BLOCKS", "PASSES_DIR", "TRIALS_DIR", "stores_inside"]

BLOCKS = PASSES_DIR, TRIALS_DIR = "gradient_passes", "trials"


def stores_inside(store: Store) -> dict[str, Store]:
    """Return {name: store} of the added outputs and, named as they are, passes and trials."""
    found = {name: Store.open(added_path(store, name)) for name in added_outputs(store)}
    for name in BLOCKS:
        if (store.path / name / "spec.json").is_file():
            found[name] = Store.open(store.path / name)
    return found

"""Initialise a store: ``python -m initialize_store`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.store.initialize_store import main

if __name__ == "__main__":
    run(main)

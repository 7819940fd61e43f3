"""Fill rows of a store: ``python -m make_dataset`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.store.make_dataset import main

if __name__ == "__main__":
    run(main)

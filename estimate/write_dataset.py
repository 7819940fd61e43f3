"""Convert a store to FFCV's .beton: ``python -m write_dataset`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.store.write_dataset import main

if __name__ == "__main__":
    run(main)

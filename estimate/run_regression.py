"""Fit attributions to rows: ``python -m run_regression`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.fit.run_regression import main

if __name__ == "__main__":
    run(main)

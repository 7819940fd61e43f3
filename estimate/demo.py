"""The whole pipeline on real digits: ``python -m demo`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.start.demo import main

if __name__ == "__main__":
    run(main)
